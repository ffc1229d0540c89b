// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// snapshotEnd is the last entry that a snapshot covers, with the newest change of members up to it. It is zero if there
// is no snapshot.
type snapshotEnd struct {
	index, term uint64
	members     members
}

// IsMonotonic returns false, so that raft leaves the entries that it stored before a snapshot from the leader to this
// log. Otherwise raft 1.8.0 would remove all entries when it installs a snapshot, also later ones that agree with it
// and were acknowledged, and would not notice (hashicorp/raft issue 697). The log itself decides in fit which entries
// stay. It never has gaps.
func (l *Log) IsMonotonic() bool { return false }

// fitToSnapshot adapts the log to a snapshot that is installed or that raft will start from. The snapshot's state is
// the state machine's. Entries that agree with the snapshot stay. All entries go if the log ends before the snapshot
// does, or has another entry at the snapshot's end: what the snapshot covers was committed, and the log holds something
// else. Readers no longer find them at once. On disk they go with the next append. After a crash in between, Open
// decides the same.
//
// evict is called before entries go, if any do. running says that raft has already read the log's end.
//
// fit does not wait for an append that waits for the disk, unless it removes entries. Raft appends nothing in that
// case.
func (l *Log) fitToSnapshot(s snapshotEnd, running bool, evict func()) error {
	agrees, err := l.agreesWith(s)
	if err != nil {
		return err
	}
	if !agrees {
		l.writing.Lock()
		defer l.writing.Unlock()
		evict()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.index >= l.snapshot.index {
		l.snapshot = s
		l.newest.Store(&s)
	}
	if agrees {
		return nil
	}
	// Raft does not learn that the entries at the end are gone. It deletes them when the leader sends other entries for
	// these indexes, if it finds some there.
	if last := l.lastIndex(); running && last > s.index {
		l.supersededUpTo = last
	}
	l.positions, l.members, l.superseded = nil, nil, true
	return nil
}

// agreesWith says whether the log's entries can stay beside a snapshot.
func (l *Log) agreesWith(s snapshotEnd) (bool, error) {
	l.mu.RLock()
	empty, first, last := len(l.positions) == 0, l.firstIndex, l.lastIndex()
	l.mu.RUnlock()
	if empty || first > s.index {
		return true, nil
	}
	if last < s.index {
		return false, nil
	}
	var e raft.Log
	if err := l.GetLog(s.index, &e); err != nil {
		return false, err
	}
	return e.Term == s.term, nil
}

// checkNewer refuses a snapshot that is older than the newest one.
func (l *Log) checkNewer(s snapshotEnd) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s.index < l.snapshot.index {
		return fmt.Errorf("refused a snapshot up to entry %d: this server has a newer one, up to entry %d", s.index, l.snapshot.index)
	}
	return nil
}

// snapshotEntry answers GetLog for entries that are not in the log. Of the last entry of the newest snapshot, it
// returns only the term. That is all that raft needs to see that the entries after it are the leader's: raft does not
// check its snapshot for that, and would request another snapshot for ever. The content is never used: before a leader
// sends entries, it looks up the entry before them. Only entry 1 is sent without such a look-up, so no snapshot should
// end there.
func (l *Log) snapshotEntry(index uint64, out *raft.Log) error {
	switch {
	case index == l.snapshot.index && index > 1:
		*out = raft.Log{Index: index, Term: l.snapshot.term, Type: raft.LogNoop}
	case index > l.snapshot.index && index <= l.supersededUpTo:
		*out = raft.Log{Index: index, Type: raft.LogNoop} // its term is zero, so it differs from the leader's entry
	default:
		return raft.ErrLogNotFound
	}
	return nil
}

// Snapshot returns the last entry that the newest installed snapshot covers, or zeros. The snapshot is on disk, and
// raft has its state or a later one. Snapshot does not block.
func (l *Log) Snapshot() (index, term uint64) {
	if s := l.newest.Load(); s != nil {
		return s.index, s.term
	}
	return 0, 0
}

// checkContinues returns an error unless entries follow the log's last entry without a gap.
func (l *Log) checkContinues(entries []*raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	last := l.lastIndex()
	if last == 0 {
		last = l.snapshot.index
		if len(entries) > 0 { // the snapshot covers all entries before these
			last = min(last, entries[0].Index-1)
		}
	}
	for _, e := range entries {
		if last++; e.Index != last {
			return fmt.Errorf("append to the log: entry %d where %d should follow", e.Index, last)
		}
	}
	return nil
}

// dropSuperseded removes from the disk the entries that fit removed. The caller holds writing.
func (l *Log) dropSuperseded() error {
	if !l.superseded {
		return nil
	}
	if err := l.truncateFrom(0); err != nil {
		return err
	}
	l.superseded = false
	l.removeBefore(l.tail().number)
	return nil
}

// hasEnd says whether the log has the last entry of a snapshot, or was adapted to the same snapshot before.
func (l *Log) hasEnd(s snapshotEnd) (bool, error) {
	l.mu.RLock()
	same := s.index == l.snapshot.index && s.term == l.snapshot.term
	inLog := len(l.positions) > 0 && l.firstIndex <= s.index && s.index <= l.lastIndex()
	l.mu.RUnlock()
	if same || !inLog {
		return same, nil
	}
	return l.agreesWith(s)
}

// onSnapshotComplete is called for each snapshot that is complete and on disk.
//
// A snapshot of this server ends in the log, or where the last snapshot did: the log is adapted to it at once. A
// snapshot from the leader ends elsewhere. Raft still has to read it. If that fails, raft continues with its old state
// and the unchanged log. So the log is adapted when raft has the new state: see Installed.
func (d *Dir) onSnapshotComplete(s snapshotEnd) error {
	d.arrived = nil
	has, err := d.Log.hasEnd(s)
	switch {
	case err != nil:
		return fmt.Errorf("fit the log to a snapshot: %w", err)
	case has:
		return d.fitToSnapshot(s)
	}
	d.arrived = &s
	return nil
}

// Installed must be called when the state machine has read a snapshot, before it uses the snapshot's state. From then
// on raft's installation of it can no longer fail (raft.go, installSnapshot). If Installed returns an error, the state
// machine must keep its old state.
func (d *Dir) Installed() error {
	if d.arrived == nil {
		return nil // raft has started from that snapshot
	}
	if err := d.fitToSnapshot(*d.arrived); err != nil {
		return err
	}
	d.arrived = nil
	return nil
}

// fitToSnapshot adapts the log and its cache to a new snapshot.
func (d *Dir) fitToSnapshot(s snapshotEnd) error {
	evict := func() {
		if c := d.cache.Load(); c != nil {
			c.evict(0, ^uint64(0))
		}
	}
	if err := d.Log.fitToSnapshot(s, true, evict); err != nil {
		return fmt.Errorf("fit the log to a snapshot: %w", err)
	}
	return nil
}
