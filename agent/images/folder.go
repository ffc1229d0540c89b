// SPDX-License-Identifier: Apache-2.0

package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/status"
)

// extensions are the endings of archives' file names. Longer ones come first: FallbackName cuts them in this order.
var extensions = []string{".tar.gz", ".tar.zst", ".tar.zstd", ".tgz", ".tzst", ".tar"}

// DefaultSettle is how long a file must stay unchanged before it is read.
const DefaultSettle = 2 * time.Second

// Folder imports the archives of one folder. Its methods must be called from one goroutine.
type Folder struct {
	// Dir is the folder; it is made when missing.
	Dir string
	// IndexFile records the imported archives, so that a restart does not import them again.
	IndexFile string
	Store     Store
	Logger    *slog.Logger
	// Board, when set, shows a status line while new files are not noticed at once.
	Board *status.Board
	// Remote, when set, fetches images from servers. The pins of these are reviewed with those of the folder, at least
	// once a day.
	Remote *Remote
	// Settle is how long a file must stay unchanged before it is read. Zero means DefaultSettle.
	Settle time.Duration

	newWatcher func() (*fsnotify.Watcher, error) // nil means fsnotify's; tests set it

	index          map[string]entry
	failedArchives map[string]fs.FileInfo // these are not imported again until they change
	// orphanedImages are pinned images that no archive has, with the time since when.
	orphanedImages map[string]time.Time
}

// errBusy means that a program is still writing the file.
var errBusy = errors.New("the file is still being written")

func (f *Folder) open() error {
	if f.index != nil {
		return nil
	}
	f.Settle = cmp.Or(f.Settle, DefaultSettle)
	f.Logger = cmp.Or(f.Logger, slog.Default())
	f.failedArchives, f.orphanedImages = map[string]fs.FileInfo{}, map[string]time.Time{}
	if err := os.MkdirAll(f.Dir, 0o755); err != nil {
		return fmt.Errorf("images: make the images folder: %w", err)
	}
	record, err := loadIndex(f.IndexFile)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	f.index = record
	return nil
}

// ImportAll imports every archive in the folder that is not in the store yet. An archive that cannot be imported is
// logged, and the others are imported. The error is about the folder alone.
func (f *Folder) ImportAll(ctx context.Context) error {
	if err := f.open(); err != nil {
		return err
	}
	_, err := f.scan(ctx)
	return err
}

// scan imports the archives that are completely written and returns the names of the others.
func (f *Folder) scan(ctx context.Context) (busy []string, err error) {
	names, err := f.archives()
	if err != nil {
		return nil, err
	}
	for name := range f.index {
		if !slices.Contains(names, name) {
			delete(f.index, name) // its images stay pinned for a while (settlePins)
		}
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(f.importIfNew(ctx, name), errBusy) {
			busy = append(busy, name)
		}
	}
	return busy, nil
}

// archives lists the folder's archives by name.
func (f *Folder) archives() ([]string, error) {
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return nil, fmt.Errorf("images: list the images folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		if isArchive(e.Name()) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// isArchive decides by the name. Copying programs use hidden files until they are done.
func isArchive(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.ContainsFunc(extensions, func(ext string) bool { return strings.HasSuffix(name, ext) })
}

// importIfNew imports one archive unless that is done, and logs the result. It returns errBusy, the failure, or nil.
func (f *Folder) importIfNew(ctx context.Context, name string) error {
	start := time.Now()
	e, fresh, err := f.importOne(ctx, name)
	switch {
	case errors.Is(err, errBusy):
		return errBusy
	case errors.Is(err, fs.ErrNotExist):
		delete(f.index, name)
		return nil
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		f.Logger.Error("images: an archive was not imported; other archives are not affected. Replace the file to try again",
			"archive", filepath.Join(f.Dir, name), "error", err)
		return err
	case !fresh:
		return nil
	}
	f.Logger.Info("images: imported", "archive", name, "images", strings.Join(e.Images, " "), "took",
		time.Since(start).Round(time.Millisecond))
	f.index[name] = e
	if err := saveIndex(f.IndexFile, f.index); err != nil {
		f.Logger.Warn("images: the import could not be recorded; the next start imports the archive again", "archive", name, "error", err)
	}
	return nil
}

// importOne imports the archive. fresh is false when there was nothing to do.
func (f *Folder) importOne(ctx context.Context, name string) (e entry, fresh bool, err error) {
	file, err := os.Open(filepath.Join(f.Dir, name))
	if err != nil {
		return e, false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return e, false, err
	}
	if last := f.failedArchives[name]; last != nil && last.Size() == info.Size() && last.ModTime().Equal(info.ModTime()) {
		return e, false, nil
	}
	if beingWritten(file) {
		return e, false, errBusy
	}
	if done, err := f.isImported(ctx, name, info, file); err != nil || done {
		return e, false, err
	}
	sum := sha256.New()
	device, err := deviceOf(f.Dir)
	if err != nil {
		return e, false, err
	}
	names, err := f.Store.Import(ctx, io.TeeReader(file, sum), FallbackName(name), Origin{Device: device, Archive: name})
	if err != nil {
		if after, serr := file.Stat(); serr == nil && (after.Size() != info.Size() || !after.ModTime().Equal(info.ModTime())) {
			return e, false, errBusy // it changed during the import, which failed for that
		}
		if ctx.Err() == nil {
			f.failedArchives[name] = info
		}
		return e, false, err
	}
	delete(f.failedArchives, name)
	if _, err := io.Copy(sum, file); err != nil { // the padding behind the archive's end
		return e, false, err
	}
	slices.Sort(names)
	return entry{info.Size(), info.ModTime(), hex.EncodeToString(sum.Sum(nil)), names}, true, nil
}

// isImported reports whether the index and the store agree that there is nothing to do. A file of which only the time
// has changed is recognised by its hash: that costs reading it, but not unpacking it.
func (f *Folder) isImported(ctx context.Context, name string, info fs.FileInfo, file *os.File) (bool, error) {
	last, known := f.index[name]
	if !known || last.Size != info.Size() {
		return false, nil
	}
	for _, image := range last.Images {
		if name, _ := Normalize(image); name != image {
			return false, nil // imported by an earlier version, under a name that no pod has
		}
		complete, err := f.Store.Complete(ctx, image)
		if err != nil || !complete {
			return false, err
		}
	}
	if last.isUnchanged(info) {
		return true, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return false, err
	}
	if hex.EncodeToString(sum.Sum(nil)) != last.SHA256 {
		_, err := file.Seek(0, io.SeekStart)
		return false, err
	}
	last.ModTime = info.ModTime()
	f.index[name] = last
	return true, saveIndex(f.IndexFile, f.index)
}

// beingWritten reports whether a program has the file open for writing: only then the kernel refuses a read lease.
// Where leases do not exist it returns false, and only the time since the last change counts.
func beingWritten(f *os.File) bool {
	fd := f.Fd()
	_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN)
}
