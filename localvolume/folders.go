// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// folderMode keeps other users of the machine away from the volumes. volumeMode lets a pod write whatever its user
	// is.
	folderMode = 0o700
	volumeMode = 0o777
	// removalRetry is the pause before removing is retried after a failure.
	removalRetry = 10 * time.Minute
)

// Options describe a node's folders.
type Options struct {
	// Paths are the folders, absolute and clean. The first is for volumes whose StorageClass names none.
	Paths []string
	// Own is the one of Paths that is made where it is missing. The others are the operator's, and a missing one may be
	// a disk that is not mounted.
	Own string
	// Free returns how many bytes of a folder's filesystem are free. nil asks the kernel.
	Free   func(folder *os.File) (int64, error)
	Logger *slog.Logger
}

// Folders are a node's folders with local volumes. It is safe for concurrent use.
type Folders struct {
	o                Options
	removalDue       timers.Signal // there is something to remove
	assigningProject sync.Mutex    // held while a volume is given its own project
}

// New describes a node's folders. It makes none of them before they are needed.
func New(o Options) *Folders {
	if o.Free == nil {
		o.Free = freeBytesOf
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return &Folders{o: o, removalDue: timers.NewSignal()}
}

// Do executes a request. An error is for users: it describes the problem on this node.
func (f *Folders) Do(r Request) (Response, error) {
	if r.Folder == "" && len(f.o.Paths) > 0 {
		r.Folder = f.o.Paths[0]
	}
	if !slices.Contains(f.o.Paths, r.Folder) {
		return Response{}, fmt.Errorf("%s is none of the node's folders for volumes, which are %s (--default-local-storage-path)", r.Folder,
			strings.Join(f.o.Paths, ", "))
	}
	switch {
	case r.Op == Space:
		return f.spaceOf(r.Folder)
	case !isVolume(r.Name):
		return Response{}, fmt.Errorf("%q is not the name of a volume's directory", r.Name)
	case r.Op == Make:
		return f.make(r)
	case r.Op == Grow:
		return f.grow(r)
	case r.Op == Remove:
		return f.remove(r)
	}
	return Response{}, fmt.Errorf("the node's version of coracle cannot %q a volume", r.Op)
}

// open opens a folder.
func (f *Folders) open(folder string) (*os.Root, error) {
	root, err := os.OpenRoot(folder)
	if errors.Is(err, fs.ErrNotExist) && folder == f.o.Own {
		if err = os.MkdirAll(folder, folderMode); err == nil {
			root, err = os.OpenRoot(folder)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the folder %s is not there: if it is on a disk of its own, mount that, or else make the folder", folder)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the folder for volumes: %w", err)
	}
	return root, nil
}

func (f *Folders) spaceOf(folder string) (Response, error) {
	root, err := f.open(folder)
	if err != nil {
		return Response{}, err
	}
	defer func() { _ = root.Close() }() // nothing was written through it
	n, err := f.freeBytes(root)
	return Response{Path: folder, Free: n}, err
}

// freeBytes returns how many bytes are free.
func (f *Folders) freeBytes(root *os.Root) (int64, error) {
	dir, err := root.Open(".")
	if err != nil {
		return 0, fmt.Errorf("opening the folder for volumes: %w", err)
	}
	defer dir.Close()
	return f.o.Free(dir)
}

// freeBytesOf returns how many bytes an unprivileged user may still write.
func freeBytesOf(dir *os.File) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil {
		return 0, fmt.Errorf("finding out how much room there is in %s: %w", dir.Name(), err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// make makes a directory. It is idempotent, also after an interruption at any point.
func (f *Folders) make(r Request) (Response, error) {
	root, err := f.open(r.Folder)
	if err != nil {
		return Response{}, err
	}
	defer func() { _ = root.Close() }() // nothing was written through it
	if err := closeToOthers(root); err != nil {
		return Response{}, err
	}
	a := Response{Path: filepath.Join(r.Folder, r.Name)}
	if a.Free, err = f.freeBytes(root); err != nil {
		return Response{}, err
	}
	if r.Bytes > a.Free {
		return a, fmt.Errorf("%s are asked for and %s are free in %s", Size(r.Bytes), Size(a.Free), r.Folder)
	}
	if err := root.Mkdir(r.Name, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return Response{}, fmt.Errorf("making the volume's directory: %w", err)
	}
	i, err := root.Lstat(r.Name)
	if err == nil && !i.IsDir() {
		return Response{}, fmt.Errorf("%s is there and is no directory; coracle does not touch it", a.Path)
	}
	if err == nil {
		err = root.Chmod(r.Name, volumeMode) // not by Mkdir, which applies the umask
	}
	if err == nil {
		a.Quota, err = f.limitVolume(root, r.Name, r.Bytes)
	}
	if err == nil {
		err = syncFolder(root) // it must still exist after a power cut once the API reports it
	}
	if err != nil {
		return Response{}, fmt.Errorf("making the volume's directory: %w", err)
	}
	return a, nil
}

// closeToOthers removes other users' access to a folder, since its volumes are open to all users. A folder with other
// contents is left as it is.
func closeToOthers(root *os.Root) error {
	i, err := root.Stat(".")
	if err != nil {
		return fmt.Errorf("looking at the folder for volumes: %w", err)
	}
	if i.Mode().Perm()&0o077 == 0 {
		return nil
	}
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("looking at the folder for volumes: %w", err)
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(128)
		for _, e := range entries {
			if !isManaged(e.Name()) && e.Name() != "lost+found" {
				return fmt.Errorf("the folder %s is open to other users of the machine, who could read volumes there, and holds other "+
					"things, such as %s: "+
					"coracle does not close it by itself. Give volumes a folder of their own, or close this one: chmod 700 %s", root.Name(),
					e.Name(), root.Name())
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("looking at the folder for volumes: %w", err)
		}
	}
	if err := dir.Chmod(folderMode); err != nil {
		return fmt.Errorf("closing the folder for volumes to other users: %w", err)
	}
	return nil
}

// syncFolder writes the folder's entries to the disk.
func syncFolder(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); !errors.Is(err, unix.EINVAL) { // a filesystem without this operation
		return err
	}
	return nil
}

// remove renames a directory, in one step that survives a power cut. Run then removes its contents.
func (f *Folders) remove(r Request) (Response, error) {
	root, err := f.open(r.Folder)
	if err != nil {
		return Response{}, err
	}
	defer func() { _ = root.Close() }() // nothing was written through it
	a := Response{Path: filepath.Join(r.Folder, r.Name)}
	switch i, err := root.Lstat(r.Name); {
	case errors.Is(err, fs.ErrNotExist):
		return a, nil
	case err != nil:
		return Response{}, fmt.Errorf("looking at the volume's directory: %w", err)
	case !i.IsDir():
		return Response{}, fmt.Errorf("%s is no directory; coracle does not touch it", a.Path)
	}
	if err := notMounted(a.Path); err != nil {
		return Response{}, err
	}
	for i := 0; ; i++ {
		err := root.Rename(r.Name, asideName(r.Name, i))
		if err == nil {
			break
		}
		if i == 100 || !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) { // a leftover of an earlier volume of that name
			return Response{}, fmt.Errorf("removing the volume's directory: %w", err)
		}
	}
	if err := syncFolder(root); err != nil {
		return Response{}, fmt.Errorf("removing the volume's directory: %w", err)
	}
	f.removalDue.Send()
	return a, nil
}

// asideName returns the name under which a volume's directory is removed.
func asideName(name string, i int) string {
	out := removingPrefix + strconv.Itoa(i) + "-" + name
	return out[:min(len(out), maxName)]
}

// notMounted returns an error when something is mounted at a path or below it: its contents are not the volume's.
func notMounted(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("looking for mounts in the volume: %w", err)
	}
	at, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != path && !strings.HasPrefix(m.Mountpoint, path+"/"), false
	})
	if err != nil {
		return fmt.Errorf("looking for mounts in the volume: %w", err)
	}
	if len(at) > 0 {
		return fmt.Errorf("a filesystem is mounted at %s, which is in the volume: unmount it, and the volume is removed", at[0].Mountpoint)
	}
	return nil
}

// Run removes directories that remove has renamed, in this run or in an earlier one, until ctx is done. part, which may
// be nil, shows its state.
func (f *Folders) Run(ctx context.Context, part *status.Part) {
	for {
		err := f.removeRenamed(ctx)
		if ctx.Err() != nil {
			return
		}
		var retry <-chan time.Time
		if err != nil {
			f.o.Logger.Warn("what removed volumes held cannot be removed yet; it is tried again", "after", removalRetry, "error", err)
			part.Set(status.Degraded, "what removed volumes held cannot be removed: "+err.Error())
			retry = time.After(removalRetry)
		} else {
			part.Set(status.Running, strings.Join(f.o.Paths, ", "))
		}
		select {
		case <-ctx.Done():
			return
		case <-f.removalDue:
		case <-retry:
		}
	}
}

// removeRenamed removes renamed directories in all folders.
func (f *Folders) removeRenamed(ctx context.Context) error {
	var errs []error
	for _, folder := range f.o.Paths {
		dir, err := os.Open(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue // nothing was made there, or its disk is unavailable
		}
		if err == nil {
			err = removeAside(ctx, dir)
			_ = dir.Close() // it was only read
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", folder, err))
		}
	}
	return errors.Join(errs...)
}

// Size formats a number of bytes for users.
func Size(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.bytes {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return strconv.FormatInt(n, 10) + " bytes"
}
