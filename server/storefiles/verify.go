// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Checked describes the content of a store's directory.
type Checked struct {
	Path    string `json:"path"`
	Cluster string `json:"cluster"`
	Member  string `json:"member"`
	Format  int    `json:"format"`
	// SnapshotIndex is the last entry in the snapshot, 0 if there is none. Revision and Keys are the snapshot's.
	SnapshotIndex uint64 `json:"snapshotIndex"`
	SnapshotBytes int64  `json:"snapshotBytes"`
	Revision      int64  `json:"revision"`
	Keys          int64  `json:"keys"`
	// FirstIndex and LastIndex are the first and last entry of the log, 0 if there are none.
	FirstIndex uint64 `json:"firstIndex"`
	LastIndex  uint64 `json:"lastIndex"`
	LastTerm   uint64 `json:"lastTerm"`
	LogBytes   int64  `json:"logBytes"`
	// Torn says that the last append is incomplete, for example after a power cut. It was never acknowledged, and the
	// next start drops it.
	Torn bool `json:"torn"`
}

// CheckStore reads everything in a store's directory, as a start does, and changes nothing. The server must not run.
func CheckStore(path string) (_ *Checked, err error) {
	in, err := disk.Inspect(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no store in %s: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out := &Checked{
		Path: path, Cluster: in.Identity.Cluster, Member: in.Identity.Member, Format: in.Format,
		FirstIndex: in.FirstIndex, LastIndex: in.LastIndex, LastTerm: in.LastTerm, LogBytes: in.LogBytes, Torn: in.Torn != "",
	}
	if in.Snapshot != nil {
		out.SnapshotIndex, out.SnapshotBytes = in.Snapshot.Index, in.Snapshot.Size
		if err := out.readState(in); err != nil {
			return nil, err
		}
	}
	return out, readEntries(in)
}

func (c *Checked) readState(in *disk.Inspection) error {
	r, err := in.State()
	if err != nil {
		return err
	}
	defer r.Close()
	state, err := mvcc.Restore(r)
	if err != nil {
		return fmt.Errorf("the snapshot of entry %d in %s is undamaged, but cannot be read: %w", c.SnapshotIndex, c.Path, err)
	}
	view := state.Freeze()
	c.Revision, c.Keys = view.Revision(), view.Stats().Keys
	return nil
}

// readEntries reads each entry, which checks its checksum, and decodes it.
func readEntries(in *disk.Inspection) error {
	return eachEntry(in, func(*raft.Log, []mvcc.Command) {})
}

// eachEntry calls do with each entry of commands in the log.
func eachEntry(in *disk.Inspection, do func(*raft.Log, []mvcc.Command)) error {
	if in.LastIndex == 0 {
		return nil
	}
	for i := in.FirstIndex; i <= in.LastIndex; i++ {
		var entry raft.Log
		if err := in.Entry(i, &entry); err != nil {
			return err
		}
		if entry.Type != raft.LogCommand {
			continue
		}
		commands, err := mvcc.DecodeEntry(entry.Data)
		if err != nil {
			return fmt.Errorf("log entry %d is undamaged, but cannot be read by this version of coracle: %w", i, err)
		}
		do(&entry, commands)
	}
	return nil
}

// ReadStore returns the state of a store's directory, as of the last entry in its log, and changes nothing. The newest
// entries may be ones that no majority has, which the next start drops. The server must not run.
func ReadStore(path string) (_ *mvcc.View, err error) {
	in, err := disk.Inspect(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no store in %s: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	state, after := mvcc.New(), uint64(0)
	if in.Snapshot != nil {
		r, err := in.State()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if state, err = mvcc.Restore(r); err != nil {
			return nil, fmt.Errorf("the snapshot in %s is undamaged, but cannot be read: %w", path, err)
		}
		after = in.Snapshot.Index
	}
	err = eachEntry(in, func(entry *raft.Log, commands []mvcc.Command) {
		if entry.Index > after { // the log keeps some entries that the snapshot has
			state.ApplyEntry(entry.Index, entry.Term, commands)
		}
	})
	return state.Freeze(), err
}

// Seen returns a revision for raftstore.Restore: that of the newest snapshot of the cluster's store in a folder, which
// clients may have seen. It returns 0 if there is no store, or if the store belongs to another cluster or is damaged,
// which is a common reason for a restore.
func Seen(path, cluster string) int64 {
	c, err := CheckStore(path)
	if err != nil || c.Cluster != cluster {
		return 0
	}
	return c.Revision
}
