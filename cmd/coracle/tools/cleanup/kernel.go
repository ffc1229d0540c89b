// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// removeCgroups removes the cgroups with this name, and those below them, in every hierarchy. Cgroups of coracle's pods
// are empty by now. Cgroups in use by another kubelet are not, and stay.
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
	slices.Reverse(dirs) // the deepest first
	for _, d := range dirs {
		if err == nil {
			err = rmdirCgroup(d)
		}
	}
	return err
}

// rmdirCgroup removes one cgroup. It tries for 2 s, because the kernel reports a cgroup as busy shortly after its last
// process ended.
func rmdirCgroup(dir string) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if procs, readErr := os.ReadFile(filepath.Join(dir, "cgroup.procs")); readErr == nil && len(procs) > 0 && time.Now().After(end) {
			return nil // the processes are another program's
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}
