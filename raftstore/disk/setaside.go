// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// SetAside renames a directory that Open found damaged to DIR.damaged-N, with the smallest free N. Then the server can
// get everything from the others into a new directory. Nothing is deleted: the operator removes the old directory when
// it has been inspected. It must not be open.
//
// The new directory will have another member name. So the new member never claims a vote of the old one, nor an entry
// that the old one acknowledged to the leader.
func SetAside(dir string) (newPath string, err error) {
	dir = filepath.Clean(dir)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("set aside %s: %w", dir, err)
	}
	held, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	for n := 1; ; n++ {
		newPath = fmt.Sprintf("%s.damaged-%d", dir, n)
		err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, newPath, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) { // a file system without RENAME_NOREPLACE
			if _, statErr := os.Lstat(newPath); errors.Is(statErr, fs.ErrNotExist) {
				err = os.Rename(dir, newPath)
			} else {
				err = unix.EEXIST
			}
		}
		switch {
		case errors.Is(err, fs.ErrExist):
			continue
		case errors.Is(err, unix.EBUSY):
			return "", fmt.Errorf("the damaged directory %s is a mount point, so it cannot be renamed. "+
				"Nothing was changed. Move its content away, except the file %s, which has the other servers' addresses, and start this server again",
				dir, peersFile)
		case err != nil:
			return "", fmt.Errorf("set aside %s as %s: %w", dir, newPath, err)
		}
		if err := atomicfile.SyncDir(filepath.Dir(dir)); err != nil {
			return newPath, fmt.Errorf("set aside %s as %s: %w", dir, newPath, err)
		}
		return newPath, nil
	}
}

// StartOver moves a damaged directory away and replaces it by one that has only the other servers' addresses and the
// note that it is to join them. So the next Open, even after a crash, does not begin a new cluster. StartOver returns
// the new path of the damaged directory.
func StartOver(dir string, peers []Peer) (newPath string, err error) {
	dir = filepath.Clean(dir)
	fresh := dir + freshSuffix
	if err := os.RemoveAll(fresh); err != nil {
		return "", fmt.Errorf("start over: %w", err)
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return "", fmt.Errorf("start over: %w", err)
	}
	for name, content := range map[string][]byte{peersFile: encodePeers(peers), joiningFile: nil} {
		if err := writeFile(filepath.Join(fresh, name), content); err != nil {
			return "", fmt.Errorf("start over: %w", err)
		}
	}
	// The new directory must be on disk before the damaged one is moved away: if the next start found neither, it would
	// take this for a new server.
	if err := atomicfile.SyncDir(filepath.Dir(dir)); err != nil {
		return "", fmt.Errorf("start over: %w", err)
	}
	if newPath, err = SetAside(dir); err != nil {
		return newPath, err
	}
	return newPath, finishStartOver(dir)
}

// freshSuffix is the suffix of StartOver's new directory until the damaged one is moved away.
const freshSuffix = ".fresh"

// finishStartOver finishes a StartOver that a crash has interrupted.
func finishStartOver(dir string) error {
	dir = filepath.Clean(dir)
	if found, err := exists(dir); err != nil || found {
		return err
	}
	if found, err := exists(dir + freshSuffix); err != nil || !found {
		return err
	}
	if err := os.Rename(dir+freshSuffix, dir); err != nil {
		return fmt.Errorf("start over: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}
