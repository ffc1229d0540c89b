// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/level"
)

// An Inspection is a directory that was read and verified as Open does it, but not changed: what a crash left is still
// there.
type Inspection struct {
	Identity Identity
	Format   int
	// Snapshot is the description of the newest snapshot, nil if there is none.
	Snapshot *raft.SnapshotMeta
	// FirstIndex and LastIndex are the indexes of the log's oldest and newest entries, 0 if there are none. LastTerm is
	// the term of the newest.
	FirstIndex, LastIndex, LastTerm uint64
	// LogBytes is the total size of the entries.
	LogBytes int64
	// Torn is the file that ends with an append that a crash interrupted, or "". The append was never acknowledged, and
	// the next start drops it.
	Torn string

	snapshots *Snapshots
	log       *Log
	lock      *os.File
}

// Inspect reads all of a directory. It returns Open's errors if something is damaged, and fs.ErrNotExist if there is no
// store. Until Close no other process can open the directory.
func Inspect(dir string) (*Inspection, error) {
	lock, err := lockShared(dir)
	if err != nil {
		return nil, err
	}
	i, err := inspect(dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	i.lock = lock
	return i, nil
}

// lockShared prevents other processes from opening a directory, without writing to it.
func lockShared(dir string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, "LOCK"))
	if errors.Is(err, fs.ErrNotExist) { // it may be a copy
		f, err = os.Open(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(&InUseError{Dir: dir}, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

func inspect(dir string) (*Inspection, error) {
	id, version, err := readIdentity(dir, level.Newest())
	if err != nil {
		return nil, err
	}
	i := &Inspection{Identity: id, Format: version, snapshots: &Snapshots{dir: filepath.Join(dir, snapshotsDir)}}
	newest, err := i.snapshots.verify()
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the folder is made at the first start
		return nil, err
	}
	if newest.index > 0 {
		list, err := i.snapshots.List()
		if err != nil {
			return nil, err
		}
		i.Snapshot = list[0]
	}
	scanned, _, err := scan(dir, newest)
	if err != nil {
		return nil, err
	}
	if err := i.readLog(scanned, newest); err != nil {
		return nil, errors.Join(err, scanned.close())
	}
	return i, nil
}

func (i *Inspection) readLog(scanned *scannedLog, newest snapshotEnd) error {
	i.log = &Log{
		dir: scanned.dir, writing: newWriteLock(),
		segments: scanned.segments, firstIndex: scanned.firstIndex, positions: scanned.positions,
	}
	i.LogBytes = scanned.bytes
	if scanned.tornSegment != nil {
		i.Torn = scanned.tornSegment.path
	}
	if err := i.log.fitToSnapshot(newest, false, func() {}); err != nil {
		return err
	}
	i.LastIndex = i.log.lastIndex()
	if i.LastIndex == 0 {
		return nil
	}
	i.FirstIndex = scanned.firstIndex
	var last raft.Log
	err := i.log.GetLog(i.LastIndex, &last)
	i.LastTerm = last.Term
	return err
}

// State opens the state of the newest snapshot.
func (i *Inspection) State() (io.ReadCloser, error) {
	if i.Snapshot == nil {
		return nil, fs.ErrNotExist
	}
	_, r, err := i.snapshots.Open(i.Snapshot.ID)
	return r, err
}

// Entry reads an entry of the log.
func (i *Inspection) Entry(index uint64, out *raft.Log) error { return i.log.GetLog(index, out) }

// Close unlocks the directory.
func (i *Inspection) Close() error { return errors.Join(i.log.close(), i.lock.Close()) }
