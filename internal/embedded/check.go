// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
)

// isComplete says whether dir holds the files of the index, by names, lengths, modes and link targets. Checksums were
// checked before the set got its name. Reading all of them at each start would take a small board a second.
func isComplete(x index.Index, dir string) bool {
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

// pointsTo says whether link is a relative symbolic link to path.
func pointsTo(link, path string) bool {
	target, err := os.Readlink(link)
	return err == nil && filepath.Join(filepath.Dir(link), target) == path
}

// openLocked opens a folder and locks it. A user of the folder takes a shared lock, and a process that wants to remove
// it an exclusive lock.
func openLocked(dir string, how int) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := flock(fd, how); err != nil {
		return 0, errors.Join(fmt.Errorf("lock %s: %w", dir, err), unix.Close(fd))
	}
	return fd, nil
}

func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sameFile(fd int, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}
