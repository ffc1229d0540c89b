// SPDX-License-Identifier: Apache-2.0

// Package servicerules keeps the record of what the Service proxy of this node has put into the host's kernel, and
// removes it by that record. Tables by upstream's name are not enough to go by: the kube-proxy of another cluster on the
// same host calls its own the same. The package never writes a rule; the back ends of proxy/ do.
package servicerules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// NFTables is the back end that is upstream's nftables proxier; NFTable is what that calls its table in both families.
const (
	NFTables = "nftables"
	NFTable  = "kube-proxy"
)

// removers take out of the kernel what a back end made, by the name in the record. Nothing there is no error.
var removers = map[string]func() error{NFTables: removeTables}

// RecordIn is the record's file in a run directory. A reboot empties that, as it empties the kernel.
func RecordIn(runDir string) string { return filepath.Join(runDir, "service-proxy") }

// Write records whose rules are about to be in the kernel.
func Write(record, backend string) error {
	if removers[backend] == nil {
		return fmt.Errorf("nothing knows how to remove the Service proxy's rules of the kind %q", backend)
	}
	if err := os.WriteFile(record, []byte(backend+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording the Service proxy's back end: %w", err)
	}
	return nil
}

// Remove takes out of the kernel what the record says that a Service proxy of coracle's made there, then the record, and
// returns the name of the back end; empty when there is no record.
func Remove(record string) (backend string, err error) {
	data, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the record of the Service proxy's back end: %w", err)
	}
	backend = strings.TrimSpace(string(data))
	remove := removers[backend]
	if remove == nil {
		return backend, fmt.Errorf("the Service proxy of another version left rules of the kind %q, which this one does not know: reboot to be rid of them", backend)
	}
	if err := remove(); err != nil {
		return backend, fmt.Errorf("removing what the Service proxy made (%s): %w", backend, err)
	}
	if err := os.Remove(record); err != nil {
		return backend, fmt.Errorf("removing the record of the Service proxy's back end: %w", err)
	}
	return backend, nil
}

func removeTables() error {
	return errors.Join(
		nfttable.Delete(nfttable.Table{Family: nfttable.IPv4, Name: NFTable}),
		nfttable.Delete(nfttable.Table{Family: nfttable.IPv6, Name: NFTable}))
}
