// SPDX-License-Identifier: Apache-2.0

// Package servicerules keeps the record of what the Service proxy of this node has put into the host's kernel, and
// removes it by that record. Tables by upstream's name are not enough to go by: the kube-proxy of another cluster on
// the same host calls its own the same. The package never writes a rule; the back ends of proxy/ do.
package servicerules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// NFTables is the back end that is upstream's nftables proxier; NFTable is what that calls its table in both families.
const (
	NFTables = "nftables"
	NFTable  = "kube-proxy"
)

// removers take out of the kernel what a back end made, by the name in the record. Nothing there is no error.
var removers = map[string]func() error{NFTables: removeTables, IPVS: removeIPVS}

// RecordIn is the record's file in a run directory. A reboot empties that, as it empties the kernel.
func RecordIn(runDir string) string { return filepath.Join(runDir, "service-proxy") }

// Write records whose rules are about to be in the kernel, beside those of which that is recorded already.
func Write(record, backend string) error {
	if removers[backend] == nil {
		return fmt.Errorf("nothing knows how to remove the Service proxy's rules of the kind %q", backend)
	}
	names, err := read(record)
	if err != nil {
		return err
	}
	if slices.Contains(names, backend) {
		return nil
	}
	return write(record, append(names, backend))
}

// Remove takes out of the kernel what the record says that a Service proxy of coracle's made there, then the record,
// and returns the names of the back ends, with commas between; empty when there is no record.
func Remove(record string) (backends string, err error) {
	return remove(record, "")
}

// RemoveOthers is Remove for all back ends but one, whose record stays.
func RemoveOthers(record, keep string) (backends string, err error) {
	return remove(record, keep)
}

func remove(record, keep string) (string, error) {
	names, err := read(record)
	if err != nil || len(names) == 0 {
		return "", err
	}
	var released, stay []string
	for _, name := range names {
		if name == keep {
			stay = append(stay, name)
			continue
		}
		take := removers[name]
		if take == nil {
			return name, fmt.Errorf("the Service proxy of another version left rules of the kind %q, which this one does not know: "+
				"reboot to be rid of them", name)
		}
		if err := take(); err != nil {
			return name, fmt.Errorf("removing what the Service proxy made (%s): %w", name, err)
		}
		released = append(released, name)
	}
	backends := strings.Join(released, ", ")
	if len(stay) > 0 {
		return backends, write(record, stay)
	}
	if err := os.Remove(record); err != nil {
		return backends, fmt.Errorf("removing the record of the Service proxy's back end: %w", err)
	}
	return backends, nil
}

// read returns the names in the record; none when there is no record.
func read(record string) ([]string, error) {
	data, err := os.ReadFile(record)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the record of the Service proxy's back end: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		if name := strings.TrimSpace(line); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

func write(record string, names []string) error {
	if err := atomicfile.Write(record, []byte(strings.Join(names, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording the Service proxy's back end: %w", err)
	}
	return nil
}

func removeTables() error {
	return errors.Join(
		nft.Delete(nft.Table{Family: nft.IPv4, Name: NFTable}),
		nft.Delete(nft.Table{Family: nft.IPv6, Name: NFTable}))
}
