// SPDX-License-Identifier: Apache-2.0

// This file keeps the record of which back ends of this node's Service proxy have made objects in the kernel, and
// removes these objects by that record. The name of upstream's tables is not sufficient: the kube-proxy of another
// cluster on the same host uses the same name. The back ends in proxy/ write the rules.

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

// ServicesByNFTables is the name of the proxy back end that is upstream's nftables proxier. ServiceTable is the name of
// its table in both families.
const (
	ServicesByNFTables = "nftables"
	ServiceTable       = "kube-proxy"
)

// serviceRemovers holds, by the back end's name in the record, the function that removes its objects from the kernel.
// Missing objects are no error.
var serviceRemovers = map[string]func() error{ServicesByNFTables: removeServiceTables, ServicesByIPVS: removeIPVS}

// ServiceRecordIn returns the path of the record in a run directory. A reboot removes the record, as it removes the
// kernel's objects.
func ServiceRecordIn(runDir string) string { return filepath.Join(runDir, "service-proxy") }

// RecordServiceRules adds a back end, which is about to make objects in the kernel, to the record.
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

// RemoveServiceRules removes the objects of all recorded back ends from the kernel, and then the record. It returns the
// names of these back ends, separated by commas, and "" when there is no record.
func RemoveServiceRules(record string) (backends string, err error) {
	return removeServiceRules(record, "")
}

// RemoveOtherServiceRules does the same as RemoveServiceRules for all back ends except keep, whose record stays.
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

// readServiceRecord returns the names in the record. It returns none when there is no record.
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
