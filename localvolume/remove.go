// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth is how many nested directories are open at a time. Deeper ones are moved up first: a pod can nest more
	// directories than this process may open files.
	maxDepth = 100
	// batch is how many names are read at a time.
	batch = 512
)

// removeAside removes the renamed directories in a folder. It removes what it can, and returns its first error.
func removeAside(ctx context.Context, folder *os.File) error {
	r := remover{ctx: ctx, folder: int(folder.Fd())}
	var first error
	failed := map[string]bool{}
	for again := true; again && ctx.Err() == nil; { // removing may rename more
		again = false
		if _, err := folder.Seek(0, io.SeekStart); err != nil {
			return err
		}
		entries, err := folder.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range entries {
			if !strings.HasPrefix(name, removingPrefix) || failed[name] {
				continue
			}
			again = true
			project := projectOf(r.folder, name)
			err := r.remove(r.folder, name, 0)
			if err == nil && project != 0 {
				_ = setProjectLimit(folder, project, 0) // a limit that stays limits nothing, and its number is not used again
			}
			if err != nil {
				failed[name] = true
				if first == nil {
					first = fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
	return first
}

// remover removes trees below a folder. os.Root.RemoveAll is not used: it enters mounts in a tree, and opens as many
// files as the tree is deep.
type remover struct {
	ctx        context.Context
	folder     int
	movedCount int
}

// remove removes an entry of a directory and everything below it. It only uses names in open directories, so that no
// link leads elsewhere.
func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("removing %q: %w", name, err)
	}
	if depth == maxDepth {
		return r.moveUp(dir, name)
	}
	fd, err := openDirectory(dir, name)
	if err != nil {
		return err
	}
	child := os.NewFile(uintptr(fd), name)
	err = r.removeEntries(child, depth)
	if closeErr := child.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the directory %q: %w", name, err)
	}
	return nil
}

// maxSkipped is how many entries of one directory that cannot be removed are skipped.
const maxSkipped = 100

// removeEntries removes a directory's entries. One that cannot be removed does not prevent the others: their removal
// frees space on the disk.
func (r *remover) removeEntries(dir *os.File, depth int) error {
	stuck := map[string]bool{}
	var first error
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		if len(names) == 0 && !errors.Is(err, io.EOF) && err != nil {
			return err
		}
		tried := false
		for _, name := range names {
			if stuck[name] {
				continue
			}
			tried = true
			err := r.remove(int(dir.Fd()), name, depth+1)
			if err == nil {
				continue
			}
			stuck[name] = true
			if first == nil {
				first = err
			}
			if len(stuck) > maxSkipped {
				return first
			}
		}
		if !tried {
			return first
		}
	}
}

// moveUp renames a directory for separate removal.
func (r *remover) moveUp(dir int, name string) error {
	for {
		to := removingPrefix + "deep-" + strconv.Itoa(r.movedCount)
		r.movedCount++
		err := unix.Renameat(dir, name, r.folder, to)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY):
			return fmt.Errorf("moving the directory %q: %w", name, err)
		}
	}
}

var errMounted = errors.New("a filesystem is mounted there; unmount it")

// openDirectory opens a directory that is neither a link nor a mount.
func openDirectory(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.EXDEV):
		return 0, fmt.Errorf("%q: %w", name, errMounted)
	case !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM): // before Linux 5.6, or forbidden in a container
		return 0, fmt.Errorf("opening the directory %q: %w", name, err)
	}
	var of, above unix.Stat_t
	if fd, err = unix.Openat(dir, name, flags, 0); err != nil {
		return 0, fmt.Errorf("opening the directory %q: %w", name, err)
	}
	err = errors.Join(unix.Fstat(fd, &of), unix.Fstat(dir, &above))
	if err == nil && of.Dev != above.Dev {
		err = fmt.Errorf("%q: %w", name, errMounted)
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}
