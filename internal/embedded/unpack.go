// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/embedded/index"
)

// Names in bin/ that are not sets: the lock of writers, and the prefix of files that are not yet complete or are being
// removed.
const (
	lockName   = ".lock"
	tempPrefix = ".tmp-"
)

// unpackWorkers is how many files are unpacked at the same time.
const unpackWorkers = 2

// install unpacks the set next to its final path and renames it to that. d.Path may exist with a damaged set.
func install(src fs.FS, x index.Index, bin string, d Dir) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	lock, err := lockBin(bin)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := removeTemps(bin); err != nil {
		return err
	}
	if !isComplete(x, d.Path) { // another process may have installed it
		if err := writePrograms(src, x, bin, d.Path); err != nil {
			return err
		}
	}
	return pointLink(d.Stable, filepath.Base(d.Path))
}

// lockBin waits until no other process writes to bin. The kernel releases the lock of a process that dies.
func lockBin(bin string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(bin, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

func writePrograms(src fs.FS, x index.Index, bin, dst string) error {
	tmp, err := os.MkdirTemp(bin, tempPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // by then tmp holds at most the old set or an incomplete new one
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	set := filepath.Join(tmp, "new")
	if err := write(src, x, set); err != nil {
		return err
	}
	// A damaged set is moved aside. Programs that run from it keep the files that they have opened.
	if err := os.Rename(dst, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(set, dst); err != nil {
		return err
	}
	return atomicfile.SyncDir(bin)
}

// write unpacks all files into the new folder dir and flushes them to the disk.
func write(src fs.FS, x index.Index, dir string) error {
	dirs := map[string]bool{dir: true}
	for _, e := range x {
		dirs[filepath.Dir(filepath.Join(dir, e.Path))] = true
	}
	for d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := writeEntries(src, x, dir); err != nil {
		return err
	}
	for d := range dirs {
		if err := atomicfile.SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}

func writeEntries(src fs.FS, x index.Index, dir string) error {
	todo := make(chan index.Entry, len(x)) // has room for all entries, so that sending never blocks
	for _, e := range x {
		todo <- e
	}
	close(todo)
	errs := make([]error, unpackWorkers)
	var wg sync.WaitGroup
	for i := range unpackWorkers {
		wg.Go(func() {
			for e := range todo {
				if errs[i] = writeEntry(src, e, filepath.Join(dir, e.Path)); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// writeEntry unpacks one file to dst.
func writeEntry(src fs.FS, e index.Entry, dst string) error {
	if e.Link != "" {
		return os.Symlink(e.Link, dst)
	}
	in, err := src.Open(e.Path)
	if err != nil {
		return fmt.Errorf("embedded file %s: %w", e.Path, err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyEntry(out, in, e), out.Close())
}

// copyEntry copies the file, sets its mode regardless of the umask, and flushes it. It refuses a file that is not the
// one in the index.
func copyEntry(out *os.File, in io.Reader, e index.Entry) error {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
		return fmt.Errorf("unpack %s: %w", e.Path, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != e.SHA256 {
		return fmt.Errorf("embedded file %s is damaged: this coracle binary is not what was built, install it again", e.Path)
	}
	if err := out.Chmod(e.Mode); err != nil {
		return err
	}
	return out.Sync()
}

// pointLink makes link a symbolic link to target. It replaces an older link in one step.
func pointLink(link, target string) error {
	tmp := filepath.Join(filepath.Dir(link), tempPrefix+"current")
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return atomicfile.SyncDir(filepath.Dir(link))
}

// explainError adds a hint to errors that a user can do something about.
func explainError(err error, bin string, need int64) error {
	const what = "unpack the embedded programs into %s: "
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Errorf(what+"%w (they need %d MB; nothing else was changed: free some space there and start again)", bin, err,
			need/1e6+1)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf(what+"%w (choose a writable folder with --data-dir)", bin, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf(what+"%w (run as root, or choose a folder of your own with --data-dir)", bin, err)
	default:
		return fmt.Errorf(what+"%w", bin, err)
	}
}
