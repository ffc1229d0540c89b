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

// SetAside renames a directory that Open found damaged to DIR.damaged-N, with
// the smallest N that is free, so that the server can get everything from the
// others into a new one. Nothing is deleted: the operator removes it when
// it is not needed for inspection any more. It must not be open.
//
// The new directory will have another member name. What the old one voted, or
// acknowledged to the leader, the new member never claims.
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
		if errors.Is(err, unix.EINVAL) { // a file system that cannot promise that
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
			return "", fmt.Errorf("the damaged directory %s is where something is mounted, so it cannot be renamed. "+
				"Nothing was changed. Move its content away, all but the file %s, by which this server finds the others, and start it again",
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

// StartOver sets a damaged directory aside and puts one in its place that
// knows nothing but where the other servers are: so that the next Open, even
// after a crash, begins no cluster of its own. It returns the damaged one's new
// path.
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
	// It must be there for certain before the damaged one goes: the next start
	// would take nothing at all for a new server.
	if err := atomicfile.SyncDir(filepath.Dir(dir)); err != nil {
		return "", fmt.Errorf("start over: %w", err)
	}
	if newPath, err = SetAside(dir); err != nil {
		return newPath, err
	}
	return newPath, finishStartOver(dir)
}

// freshSuffix is what the new directory of StartOver has until the damaged one
// is out of its way.
const freshSuffix = ".fresh"

// finishStartOver ends what a crash may have interrupted.
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
