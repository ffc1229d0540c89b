// SPDX-License-Identifier: Apache-2.0

// Package storefiles works on the store's files. It writes and checks backups, replaces a stopped server's store by
// one, and checks such a store.
//
// It never deletes a former store, and changes nothing before all input has been checked. Package raftstore owns the
// contents of the files.
//
// Its goroutines: one for each other server that is asked before a recovery.
package storefiles

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// backupAlign is the size in bytes to a multiple of which a backup's state is padded with zeros. The SHA-256 of state
// and zeros comes last. This is the format of etcd's Maintenance.Snapshot, so that etcdctl can make a backup, too.
const backupAlign = 512

// Backup describes a backup.
type Backup struct {
	Path     string `json:"path"`
	Bytes    int64  `json:"bytes"`
	Revision int64  `json:"revision"`
	Keys     int64  `json:"keys"`
	level    int    // of its cluster
}

// CopyBackup copies a backup, and returns an error if it was incomplete.
func CopyBackup(w io.Writer, r io.Reader) (int64, error) {
	c := &checksum{sum: sha256.New()}
	n, err := io.Copy(io.MultiWriter(w, c), r)
	if err != nil {
		return n, err
	}
	return n, c.check()
}

// SaveBackup writes a backup to a new file that only its owner may read. The file is complete and synced to disk, or
// removed after an error. It refuses to replace a file.
func SaveBackup(path string, r io.Reader) (n int64, err error) {
	if err := checkAbsent(path); err != nil {
		return 0, err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("writing the backup: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing the backup %s: %w; nothing was kept of it", path, err), f.Close(), os.Remove(f.Name()))
		}
	}()
	if n, err = CopyBackup(f, r); err != nil {
		return n, err
	}
	if err := f.Sync(); err != nil {
		return n, err
	}
	if err := renameNew(f.Name(), path); err != nil {
		return n, err
	}
	return n, errors.Join(f.Close(), atomicfile.SyncDir(dir))
}

func checkAbsent(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("writing the backup: %w", err)
	}
	return fmt.Errorf("%s is there already. Nothing was changed: choose another name, or move it away", path)
}

// renameNew renames a file unless the new name exists. Not every file system can do that in one step.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err := checkAbsent(to); err != nil {
			return err
		}
		return os.Rename(from, to)
	}
	if errors.Is(err, unix.EEXIST) {
		return checkAbsent(to)
	}
	return err
}

// CheckBackup reads a whole backup, as a restore does.
func CheckBackup(path string) (*Backup, error) {
	f, err := openBackup(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkForeign(f); err != nil {
		return nil, fmt.Errorf("%s cannot be used as a backup: %w. Nothing was changed", path, err)
	}
	n, err := CopyBackup(io.Discard, f)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used as a backup: %w. Nothing was changed; use another backup", path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	state, err := mvcc.Restore(f)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used as a backup, although its checksum is right: %w. Nothing was changed; "+
			"use another backup, or the version of coracle that wrote this one", path, err)
	}
	view := state.Freeze()
	return &Backup{Path: path, Bytes: n, Revision: view.Revision(), Keys: view.Stats().Keys, level: view.Level()}, nil
}

func openBackup(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the backup: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a file, so it is no backup. Nothing was changed", path), err, f.Close())
	}
	return f, nil
}

// checkForeign returns an error for a file that people may take for a backup of this store. It leaves the file at its
// start.
func checkForeign(f io.ReadSeeker) error {
	start := make([]byte, 20)
	n, err := io.ReadFull(f, start)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	switch {
	case n == 0:
		return errors.New("it is empty")
	case n == 20 && binary.LittleEndian.Uint32(start[16:]) == 0xED0CDAED: // bbolt's magic number
		return errors.New("it is a snapshot of etcd, such as k3s makes, and this store has a format of its own")
	case bytes.HasPrefix(start, []byte("SQLite format 3\x00")):
		return errors.New("it is an SQLite database, such as k3s keeps, and this store has a format of its own")
	case bytes.HasPrefix(start, []byte("PK\x03\x04")), bytes.HasPrefix(start, []byte{0x1f, 0x8b}),
		bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return errors.New("it is compressed; decompress it first")
	}
	return nil
}

// checksum checks whether its input ends with the SHA-256 of the bytes before.
type checksum struct {
	sum  hash.Hash
	tail []byte // the last bytes, not yet in sum
	n    int64
}

func (c *checksum) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - sha256.Size; over > 0 {
		c.sum.Write(c.tail[:over])
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	return len(p), nil
}

func (c *checksum) check() error {
	if c.n%backupAlign != sha256.Size {
		return fmt.Errorf("it is no backup of a store, or an incomplete one: %d bytes", c.n)
	}
	if !bytes.Equal(c.sum.Sum(nil), c.tail) {
		return errors.New("it is damaged, or no backup of a store: its checksum is wrong")
	}
	return nil
}
