// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// prune removes the sets in bin that no process needs, except the set keep. Two kinds of processes need a set: a
// coracle that holds a lock on it, and a program that was started from it. Shims of pods that an older version started
// are such programs: they run the runc of their own set when their pod stops.
func prune(bin, keep, proc string) error {
	entries, err := os.ReadDir(bin)
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != keep && !strings.HasPrefix(e.Name(), ".") {
			old = append(old, e.Name())
		}
	}
	if len(old) == 0 {
		return nil
	}
	lock, err := lockBin(bin)
	if err != nil {
		return err
	}
	defer lock.Close()
	used, err := runningFrom(bin, proc)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range old {
		if !used[name] {
			errs = append(errs, remove(bin, name))
		}
	}
	return errors.Join(errs...)
}

// remove renames the set before it removes it, so that an interrupted removal leaves no incomplete set.
func remove(bin, name string) error {
	dir := filepath.Join(bin, name)
	fd, err := openLocked(dir, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tmp := filepath.Join(bin, tempPrefix+"old-"+name)
	if err := os.Rename(dir, tmp); err != nil {
		return err
	}
	return os.RemoveAll(tmp)
}

// removeTemps removes the files of a process that was killed while it unpacked. The caller holds the lock.
func removeTemps(bin string) error {
	entries, err := os.ReadDir(bin)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(bin, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// runningFrom returns the names of the folders in bin from which a program runs now. It ignores processes whose program
// this user may not see: a user who may write to bin can see the shims that were started from there.
func runningFrom(bin, proc string) (map[string]bool, error) {
	bin, err := filepath.EvalSymlinks(bin)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join(proc, e.Name(), "exe"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
			continue // a kernel thread, an exited process, or another user's process
		}
		if err != nil {
			return nil, fmt.Errorf("see what process %s runs: %w", e.Name(), err)
		}
		if rest, ok := strings.CutPrefix(exe, bin+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			used[name] = true
		}
	}
	return used, nil
}
