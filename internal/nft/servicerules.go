// SPDX-License-Identifier: Apache-2.0

// This file keeps the record of what the Service proxy of this node has put into the host's kernel, and removes it by
// that record. Tables by upstream's name are not enough to go by: the kube-proxy of another cluster on the same host
// calls its own the same. The back ends of proxy/ write the rules.

package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// ServicesByNFTables is the back end that is upstream's nftables proxier; ServiceTable is what that calls its table in
// both families.
const (
	ServicesByNFTables = "nftables"
	ServiceTable       = "kube-proxy"
)

// serviceRemovers take out of the kernel what a back end made, by the name in the record. Nothing there is no error.
var serviceRemovers = map[string]func() error{ServicesByNFTables: removeServiceTables, ServicesByIPVS: removeIPVS}

// ServiceRecordIn is the record's file in a run directory. A reboot empties that, as it empties the kernel.
func ServiceRecordIn(runDir string) string { return filepath.Join(runDir, "service-proxy") }

// RecordServiceRules records whose rules are about to be in the kernel, beside those of which that is recorded
// already.
func RecordServiceRules(record, backend string) error {
	if serviceRemovers[backend] == nil {
		return fmt.Errorf("nothing knows how to remove the Service proxy's rules of the kind %q", backend)
	}
	names, err := readServiceRecord(record)
	if err != nil {
		return err
	}
	if slices.Contains(names, backend) {
		return nil
	}
	return writeServiceRecord(record, append(names, backend))
}

// RemoveServiceRules takes out of the kernel what the record says that a Service proxy of coracle's made there, then
// the record, and returns the names of the back ends, with commas between; empty when there is no record.
func RemoveServiceRules(record string) (backends string, err error) {
	return removeServiceRules(record, "")
}

// RemoveOtherServiceRules is RemoveServiceRules for all back ends but one, whose record stays.
func RemoveOtherServiceRules(record, keep string) (backends string, err error) {
	return removeServiceRules(record, keep)
}

func removeServiceRules(record, keep string) (string, error) {
	names, err := readServiceRecord(record)
	if err != nil || len(names) == 0 {
		return "", err
	}
	var released, stay []string
	for _, name := range names {
		if name == keep {
			stay = append(stay, name)
			continue
		}
		take := serviceRemovers[name]
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
		return backends, writeServiceRecord(record, stay)
	}
	if err := os.Remove(record); err != nil {
		return backends, fmt.Errorf("removing the record of the Service proxy's back end: %w", err)
	}
	return backends, nil
}

// readServiceRecord returns the names in the record; none when there is no record.
func readServiceRecord(record string) ([]string, error) {
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

func writeServiceRecord(record string, names []string) error {
	if err := atomicfile.Write(record, []byte(strings.Join(names, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording the Service proxy's back end: %w", err)
	}
	return nil
}

func removeServiceTables() error {
	return errors.Join(
		Delete(Table{Family: IPv4, Name: ServiceTable}),
		Delete(Table{Family: IPv6, Name: ServiceTable}))
}
