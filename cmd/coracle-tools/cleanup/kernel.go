// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// serviceTables are those of upstream's Service proxy, which runs inside coracle.
var serviceTables = []string{"kube-proxy"}

type nftTable struct {
	Family string `json:"family"`
	Name   string `json:"name"`
}

// removeServiceTables asks the nft on PATH, which carriedFirst saw to.
func removeServiceTables(ctx context.Context) error {
	out, err := nft(ctx, "--json", "list", "tables")
	if err != nil {
		return err
	}
	tables, err := parseTables(out)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tables {
		if slices.Contains(serviceTables, t.Name) {
			_, err := nft(ctx, "delete", "table", t.Family, t.Name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func parseTables(out []byte) ([]nftTable, error) {
	var list struct {
		Nftables []struct {
			Table *nftTable `json:"table"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("read the list of packet filter tables: %w", err)
	}
	var tables []nftTable
	for _, e := range list.Nftables {
		if e.Table != nil {
			tables = append(tables, *e.Table)
		}
	}
	return tables, nil
}

func nft(ctx context.Context, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "nft", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// removeCgroups removes the cgroups of pods in every hierarchy. They are empty by now; another kubelet's are not, and
// those stay.
func removeCgroups(name string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		roots, _ := filepath.Glob(pattern + name) // the pattern is well-formed
		for _, root := range roots {
			if fi, err := os.Lstat(root); err != nil || !fi.IsDir() {
				continue
			}
			errs = append(errs, removeCgroup(root))
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	slices.Reverse(dirs) // the innermost first
	for _, d := range dirs {
		if err == nil {
			err = rmdirCgroup(d)
		}
	}
	return err
}

// rmdirCgroup removes one cgroup; the kernel keeps one busy for a moment after its last process ended.
func rmdirCgroup(dir string) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if procs, readErr := os.ReadFile(filepath.Join(dir, "cgroup.procs")); readErr == nil && len(procs) > 0 && time.Now().After(end) {
			return nil // somebody else's
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}
