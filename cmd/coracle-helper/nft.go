// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// runNFT becomes the carried nft. Nothing of the host is used: its own loader is told where its own libraries are. It
// returns only when that fails.
func runNFT(args []string) error {
	self, err := os.Executable() // symbolic links are resolved already
	if err != nil {
		return fmt.Errorf("find the carried nft: %w", err)
	}
	dir := filepath.Join(filepath.Dir(self), "nftables")
	loader := filepath.Join(dir, "ld.so")
	argv := append([]string{loader, "--library-path", dir, "--argv0", "nft", filepath.Join(dir, "nft")}, args...)
	if err := syscall.Exec(loader, argv, os.Environ()); err != nil {
		return fmt.Errorf("start %s: %w", loader, err)
	}
	return nil
}
