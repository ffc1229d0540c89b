// SPDX-License-Identifier: Apache-2.0

package carried

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/carried/index"
)

// complete tells whether dir holds what the index lists, by names, lengths, modes and link targets. Hashes were checked
// before the set got its name, and reading a hundred megabytes at each start would cost a small board a second.
func complete(x index.Index, dir string) bool {
	for _, e := range x {
		p := filepath.Join(dir, e.Path)
		if e.Link != "" {
			if !pointsTo(p, filepath.Join(filepath.Dir(p), e.Link)) {
				return false
			}
			continue
		}
		fi, err := os.Lstat(p)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() != e.Size || fi.Mode().Perm() != e.Mode {
			return false
		}
	}
	return true
}

// pointsTo tells whether link is a relative symbolic link that names path.
func pointsTo(link, path string) bool {
	target, err := os.Readlink(link)
	return err == nil && filepath.Join(filepath.Dir(link), target) == path
}

// openLocked opens a folder and takes a lock on it: shared by those who use it, exclusive, without waiting, by who
// wants to remove it.
func openLocked(dir string, exclusive bool) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX | unix.LOCK_NB
	}
	if err := flock(f, how); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
