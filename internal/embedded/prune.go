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

// prune removes the sets in bin other than keep that no process needs. Two kinds of process need one: a coracle, which
// holds a lock on it, and a program started from it, as the shims of pods that an older version started are: they run
// the runc beside them when their pod stops.
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

// remove takes the set's name away first, so that a removal cut short leaves no set that looks half complete.
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

// removeTemps clears what a process left that was killed while it unpacked. The caller holds the lock.
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

// runningFrom names the folders of bin from which a program runs now. A process whose program this user may not see is
// none of ours: who may write to bin sees the shims that were started from it.
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
			continue // a kernel thread, exited meanwhile, or another user's
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
