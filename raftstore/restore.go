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

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// revisionLeap is how far a restored or recovered store's revision moves ahead. Clients may have seen revisions that
// came after the backup, or that only the lost servers had. Those must not be used again for other content. A thousand
// writes a second for eleven days are fewer.
const revisionLeap = 1_000_000_000

// revisionsPerSecond, times the Unix time in seconds, is the least revision with which a restored store begins. So when
// one backup is restored a second time, the store begins later than it did the first time, even if the cluster has
// written in between. This fails only if more revisions than that were written per second, or if the clock was set
// back. If the revision of the replaced store is known, the new one is later whatever the clock says.
const revisionsPerSecond = 1000

// revisionsAhead decides where a restored or recovered store begins. If the least revision (revisionsPerSecond) is
// further ahead of the store's own than this, the store begins exactly there. Otherwise it leaps by revisionLeap from
// its own. After such a leap, an older store that is recovered next would be behind it for eleven days.
const revisionsAhead = 1_000_000

// Beside follows Options.Dir in the name of the folder in which Restore builds the store.
const Beside = ".restoring"

// seedIndex is the index of the snapshot that a restored store starts from. It is not 1: disk.Log knows only the term
// of a snapshot's last entry, and raft would send entry 1 without a look-up before it.
const seedIndex = 2

// Restore makes a new store in o.Dir, which must be empty or missing, from a backup that Backup wrote. seen is the
// revision of the store that the new one replaces, 0 if there is none or it is not known. Whatever the clock says, the
// new store's revision is later than seen. The new store is a cluster of one server, with a new identity unless o names
// one. Clients' watches and lists that were under way find their revisions compacted, and start over.
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
	if stored := state.Freeze().Level(); stored > o.newest || stored < level.OldestOf(o.newest) {
		return fmt.Errorf("raftstore: restore: the backup is of a cluster of level %d, and this version knows levels %d to %d. "+
			"Nothing was changed. Use a version that knows that level", stored, level.OldestOf(o.newest), o.newest)
	}
	leap(o, state, seen, seedIndex)
	if err := build(o, state); err != nil {
		return fmt.Errorf("raftstore: restore: %w. Nothing was put into %s; try again", err, o.Dir)
	}
	return nil
}

// build makes the new directory beside its path and moves it there when it is complete. So what a crash leaves is never
// taken for a store, in particular not for an empty one.
func build(o Options, state *mvcc.State) error {
	place := filepath.Clean(o.Dir)
	beside := place + Beside
	if err := os.RemoveAll(beside); err != nil {
		return err
	}
	dir, err := disk.Open(disk.Options{
		Newest: o.newest, Level: state.Freeze().Level(), Path: beside,
		Identity: disk.Identity{Cluster: o.ClusterID, Node: o.NodeID}, Logger: o.Logger, Clock: o.Clock,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(seed(dir, state), dir.Close()); err != nil {
		return err
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) { // the directory is empty
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

// writeAlone writes a state as a snapshot that ends at an index and whose only member is the directory's server.
func writeAlone(dir *disk.Dir, state *mvcc.State, index, term uint64) error {
	member := dir.Identity.Member
	servers := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(member), Address: raft.ServerAddress(member)}}}
	sink, err := dir.Snapshots.Create(disk.SnapshotVersion, index, term, servers, index, nil)
	if err != nil {
		return err
	}
	snapshot := state.Freeze().Snapshot()
	defer snapshot.Release()
	return (&fsmSnapshot{snapshot}).Persist(sink)
}

// leap moves a state's revision beyond all that clients may have seen. The log's entries follow after index.
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
