// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// The table stays in the kernel when an Enforcer stops. If another program deletes it then, and no server replies when
// the next Enforcer starts, it is not known which pods are restricted. So the table's content is stored in a file. A
// reboot deletes the file, as it ends all pods.

// save stores the kernel's table for the next Enforcer.
func (e *Enforcer) save() error {
	if e.o.StateFile == "" || e.table.applied == nil { // the table is unknown: the stored one may still be right
		return nil
	}
	if e.table.applied.isEmpty() {
		return e.removeSaved()
	}
	if err := atomicfile.Write(e.o.StateFile, renderReplacement(e.table.applied), 0o600); err != nil {
		return fmt.Errorf("keeping the rules of NetworkPolicies: %w", err)
	}
	return nil
}

// reinstate loads into the kernel the nftables table that an earlier Enforcer saved in StateFile, if the kernel has no
// such table.
func (e *Enforcer) reinstate(ctx context.Context) error {
	if e.o.StateFile == "" {
		return nil
	}
	text, err := os.ReadFile(e.o.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the rules of NetworkPolicies that were kept: %w", err)
	}
	if ok, err := nft.Exists(kernelTable); err != nil || ok {
		return err
	}
	e.log.Info("The nftables table of NetworkPolicies was removed while this program did not run; writing what was in it")
	return run(ctx, text)
}

// removeSaved removes the file once newer rules are in effect.
func (e *Enforcer) removeSaved() error {
	if e.o.StateFile == "" {
		return nil
	}
	return RemoveSaved(e.o.StateFile)
}

// RemoveSaved removes an Enforcer's StateFile. It is no error if there is none.
func RemoveSaved(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the rules of NetworkPolicies that were kept: %w", err)
	}
	return nil
}
