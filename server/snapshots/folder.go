// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Info describes one snapshot in a list.
type Info struct {
	Name string `json:"name"`
	// Location is the path, or s3://BUCKET/KEY.
	Location string `json:"location"`
	Size     int64  `json:"size"`
	Header
	// Problem says why this file cannot be used. Header is then empty.
	Problem string `json:"problem,omitempty"`
}

// partialPrefix is the prefix of the names of files that are being written.
const partialPrefix = ".half-"

// folder is the path of the folder with this server's files.
type folder string

// save writes a new file. It is complete, synced to disk and read back, or removed after an error.
func (d folder) save(name string, fill func(io.Writer) error) (info Info, err error) {
	if err := checkName(name); err != nil {
		return info, err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return info, fmt.Errorf("making the folder for snapshots: %w", err)
	}
	path := filepath.Join(string(d), name)
	if _, err := os.Lstat(path); err == nil {
		return info, fmt.Errorf("there is a snapshot %s already. Nothing was changed; choose another name", name)
	}
	f, err := os.CreateTemp(string(d), partialPrefix+"*") // mode 0600
	if err != nil {
		return info, fmt.Errorf("writing the snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing the snapshot %s: %w; nothing was kept of it", path, err), os.Remove(f.Name()))
		}
		err = errors.Join(err, f.Close())
	}()
	out := bufio.NewWriterSize(f, 64<<10)
	if err := errors.Join(fill(out), out.Flush()); err != nil {
		return info, err
	}
	if err := f.Sync(); err != nil {
		return info, err
	}
	if info, err = verify(f); err != nil {
		return info, fmt.Errorf("reading it back: %w", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.ENOSYS) {
		err = os.Rename(f.Name(), path)
		if err != nil {
			return info, err
		}
	} else if err != nil {
		return info, err
	}
	info.Name, info.Location = name, path
	if err := atomicfile.SyncDir(string(d)); err != nil {
		return info, fmt.Errorf("making the name of %s last: %w", path, err)
	}
	return info, nil
}

// verify reads the file from the disk and checks it.
func verify(f *os.File) (Info, error) {
	// The written data is in the page cache. The kernel drops it, so that the disk is read (posix_fadvise(2)). Where
	// the kernel does not, for example on tmpfs, the cache is read.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	info, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Info{}, err
	}
	h, err := checkSum(f, info.Size())
	return Info{Size: info.Size(), Header: h}, err
}

// list returns the snapshots in the folder, the oldest first. It reads only headers.
func (d folder) list() ([]Info, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the snapshots: %w", err)
	}
	var out []Info
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !e.Type().IsRegular() {
			continue
		}
		info, err := d.stat(e.Name())
		if errors.Is(err, ErrNoSnapshot) || errors.Is(err, fs.ErrNotExist) {
			continue // another program's file, or removed in the meantime
		}
		if err != nil {
			info.Problem, info.Header = err.Error(), Header{}
		}
		out = append(out, info)
	}
	sortByTime(out)
	return out, nil
}

func (d folder) stat(name string) (Info, error) {
	info := Info{Name: name, Location: filepath.Join(string(d), name)}
	f, err := os.Open(info.Location)
	if err != nil {
		return info, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil {
		info.Size = st.Size()
	}
	info.Header, _, err = readHeader(bufio.NewReader(f))
	return info, err
}

func (d folder) delete(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if st, err := os.Lstat(filepath.Join(string(d), name)); errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return errNotThere // opening a pipe would wait for a writer
	}
	if _, err := d.stat(name); errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoSnapshot) {
		return errNotThere
	} else if errors.Is(err, errUnreadable) {
		return err
	}
	if err := os.Remove(filepath.Join(string(d), name)); err != nil {
		return fmt.Errorf("deleting the snapshot %s: %w", name, err)
	}
	return atomicfile.SyncDir(string(d))
}

// prune removes the oldest snapshots of a series, except for the newest keep and the one with the name made. It returns
// the names of those that it removed.
func (d folder) prune(keep int, of series, made string) ([]string, error) {
	list, err := d.list()
	if err != nil {
		return nil, err
	}
	return removeEach(surplusSnapshots(list, keep, of.contains, made), d.delete)
}

func removeEach(list []Info, remove func(name string) error) (deleted []string, err error) {
	for _, i := range list {
		removeErr := remove(i.Name)
		if err = errors.Join(err, removeErr); removeErr == nil {
			deleted = append(deleted, i.Name)
		}
	}
	return deleted, err
}

// removeHalves removes incomplete files of an interrupted process.
func (d folder) removeHalves() error {
	paths, err := filepath.Glob(filepath.Join(string(d), partialPrefix+"*"))
	for _, p := range paths {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}

var errNotThere = errors.New("there is no such snapshot")

func sortByTime(list []Info) {
	slices.SortStableFunc(list, func(a, b Info) int { return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Name, b.Name)) })
}

// surplusSnapshots returns the oldest snapshots of a list, beyond the newest keep. Damaged snapshots are not counted.
// made is the name of a snapshot that is never returned.
func surplusSnapshots(list []Info, keep int, counts func(Info) bool, made string) []Info {
	list = slices.DeleteFunc(slices.Clone(list), func(i Info) bool { return i.Problem != "" || !counts(i) })
	slices.SortStableFunc(list, byAge)
	list = list[:max(0, len(list)-keep)]
	return slices.DeleteFunc(list, func(i Info) bool { return i.Name == made })
}

// byAge compares by the store's revision, which never goes back in a cluster. A machine's clock may, and a snapshot
// that was taken while the clock was ahead would count as the newest for years.
func byAge(a, b Info) int {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.Time.Compare(b.Time), strings.Compare(a.Name, b.Name))
}

// stampForm is the layout of times in names.
const stampForm = "20060102T150405Z"

func formatStamp(t time.Time) string { return t.UTC().Format(stampForm) }
