// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// revisionLeap is how far a restored or recovered store's revision moves ahead.
// Clients may have seen revisions that came after the backup, or that only the lost
// servers had; those must not come again with another content. A thousand writes a
// second for eleven days are fewer.
const revisionLeap = 1_000_000_000

// revisionsPerSecond makes of the time the revision that a restored store has at
// least. A backup that is restored a second time, after the cluster has gone on from
// the first, so gets another revision than then, and a later one, as long as the
// cluster wrote no more than that and its clock was not set back; where the store that it replaces can be read, it is
// later whatever the clock says.
const revisionsPerSecond = 1000

// revisionsAhead is how far that revision has to be ahead of a store's own for the store to leap there, and no further:
// had it leapt from its own, the next one that is recovered, an older one, would be behind it for eleven days.
const revisionsAhead = 1_000_000

// seedIndex is the index of the snapshot that a restored store starts from. Not
// 1: raft sends entry 1 without having looked at one before, so disk.Log could
// not let a snapshot that ends there stand for it.
const seedIndex = 2

// Restore makes a new store in o.Dir, which must be empty or not there, from
// what Backup wrote. seen is the revision of the store whose place it takes, 0 if there is none or it is not known:
// whatever the clock says, the new one goes beyond it. It becomes a cluster of one server with a new identity
// unless o names one. Watches and lists that were under way elsewhere find
// their revisions compacted, and start over.
func Restore(o Options, backup io.Reader, seen int64) error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	if entries, err := os.ReadDir(o.Dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("raftstore: restore: the directory %s is not empty. Nothing was changed. Move it away first", o.Dir)
	}
	state, err := mvcc.Restore(bufio.NewReader(backup))
	if err != nil {
		return fmt.Errorf("raftstore: restore: the backup cannot be used, and nothing was changed: %w", err)
	}
	leap(o, state, seen, seedIndex)
	if err := build(o, state); err != nil {
		return fmt.Errorf("raftstore: restore: %w. Nothing was put into %s; try again", err, o.Dir)
	}
	return nil
}

// build makes the new directory beside its place and moves it there when it is
// complete: what a crash leaves is never taken for a store, let alone an empty one.
func build(o Options, state *mvcc.State) error {
	place := filepath.Clean(o.Dir)
	beside := place + ".restoring"
	if err := os.RemoveAll(beside); err != nil {
		return err
	}
	dir, err := disk.Open(disk.Options{
		Path: beside, Identity: disk.Identity{Cluster: o.ClusterID, Node: o.NodeID}, Logger: o.Logger, Clock: o.Clock,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(seed(dir, state), dir.Close()); err != nil {
		return err
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) { // it is empty
		return err
	}
	return disk.Move(beside, place)
}

// seed writes a state as the first snapshot of a new directory.
func seed(dir *disk.Dir, state *mvcc.State) error {
	const term = 1
	if err := dir.Vars.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	return writeAlone(dir, state, seedIndex, term)
}

// writeAlone writes a state as a snapshot that ends at an index, and has the directory's server as the only member.
func writeAlone(dir *disk.Dir, state *mvcc.State, index, term uint64) error {
	member := dir.Identity.Member
	servers := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(member), Address: raft.ServerAddress(member)}}}
	sink, err := dir.Snapshots.Create(raft.SnapshotVersionMax, index, term, servers, index, nil)
	if err != nil {
		return err
	}
	snapshot := state.Freeze().Snapshot()
	defer snapshot.Release()
	return (&fsmSnapshot{snapshot}).Persist(sink)
}

// leap makes all of a state's revisions ones that no client has seen, and is for a log whose entries come after index.
func leap(o Options, state *mvcc.State, seen int64, index uint64) {
	least := o.Clock.Now().Unix() * revisionsPerSecond
	if seen > 0 {
		least = max(least, seen+revisionLeap)
	}
	by := int64(revisionLeap)
	if least > state.Freeze().Revision()+revisionsAhead {
		by = 0
	}
	state.Leap(by, least, index)
}
