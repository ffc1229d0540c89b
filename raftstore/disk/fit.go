// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// snapshotEnd is the last entry that a snapshot covers, and the newest change of
// members among those entries; zeros if there is none.
type snapshotEnd struct {
	index, term uint64
	members     members
}

// IsMonotonic tells raft to leave entries that it stored before a snapshot from
// the leader to this log. If it were true, raft 1.8.0 would remove all entries
// when it installed one, also those that come after it, agree with it and
// were acknowledged, and not know it (hashicorp/raft issue 697). The log sorts
// them out itself, in fit; and it never has gaps.
func (l *Log) IsMonotonic() bool { return false }

// fit fits the log to a snapshot that is installed, or that raft will start from: its state is the state machine's.
// Entries that agree with it stay. If the log ends before the snapshot does, or has another entry at the snapshot's
// end, no entry of it is of use: what the snapshot covers was committed, and the log holds something else. Then entries
// are gone for readers at once, and on disk with the next append; after a crash in between, Open comes to the same
// conclusion.
//
// forget is called before entries go, if they do. running says that raft has
// read the log's end already.
//
// It does not wait for an append that waits for the disk, unless it takes
// entries away; raft appends nothing then.
func (l *Log) fit(s snapshotEnd, running bool, evict func()) error {
	agrees, err := l.agrees(s)
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
	// Raft does not learn that the end is gone. It deletes it when the leader
	// sends other entries for these indexes, if it finds some there.
	if last := l.last(); running && last > s.index {
		l.doomed = last
	}
	l.positions, l.members, l.superseded = nil, nil, true
	return nil
}

// agrees says whether the log's entries can stay with a snapshot.
func (l *Log) agrees(s snapshotEnd) (bool, error) {
	l.mu.RLock()
	empty, first, last := len(l.positions) == 0, l.first, l.last()
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

// admits refuses a snapshot that is older than the newest one.
func (l *Log) admits(s snapshotEnd) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s.index < l.snapshot.index {
		return fmt.Errorf("a snapshot up to entry %d is refused: there is one up to entry %d", s.index, l.snapshot.index)
	}
	return nil
}

// beyond answers GetLog for entries that are not in the log. The entry that
// the newest snapshot ends with is known by its term alone, which is all that
// raft needs to tell that the entries after it are the leader's: raft itself
// does not look at its snapshot then, and would ask for another one for ever.
// The content is never used: a leader that sends entries has those before them.
// Only from entry 1 on does it send without having looked at one before; so no
// snapshot should end there.
func (l *Log) beyond(index uint64, out *raft.Log) error {
	switch {
	case index == l.snapshot.index && index > 1:
		*out = raft.Log{Index: index, Term: l.snapshot.term, Type: raft.LogNoop}
	case index > l.snapshot.index && index <= l.doomed:
		*out = raft.Log{Index: index, Type: raft.LogNoop} // of no term: it differs from the leader's
	default:
		return raft.ErrLogNotFound
	}
	return nil
}

// Snapshot returns the last entry that the newest installed snapshot covers, or
// zeros. The snapshot is on disk, and raft has its state or more. It waits for
// nothing.
func (l *Log) Snapshot() (index, term uint64) {
	if s := l.newest.Load(); s != nil {
		return s.index, s.term
	}
	return 0, 0
}

// continues checks that entries are the next ones: nothing may be missing
// between them and what is there.
func (l *Log) continues(entries []*raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	last := l.last()
	if last == 0 {
		last = l.snapshot.index
		if len(entries) > 0 { // the snapshot covers whatever is before
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

// dropSuperseded cuts, on disk too, what fit took away. The caller holds
// writing.
func (l *Log) dropSuperseded() error {
	if !l.superseded {
		return nil
	}
	if err := l.cut(0); err != nil {
		return err
	}
	l.superseded = false
	l.removeBefore(l.tail().number)
	return nil
}

// has says whether the log has a snapshot's last entry, or was fitted to the same
// snapshot before.
func (l *Log) has(s snapshotEnd) (bool, error) {
	l.mu.RLock()
	same := s.index == l.snapshot.index && s.term == l.snapshot.term
	inLog := len(l.positions) > 0 && l.first <= s.index && s.index <= l.last()
	l.mu.RUnlock()
	if same || !inLog {
		return same, nil
	}
	return l.agrees(s)
}

// completed is called for each snapshot that is complete and on disk.
//
// One of this server's own ends in the log, or where the one before did: the log is
// fitted to it at once. One from the leader ends elsewhere. Raft still has to read
// it back, which may fail, and then goes on with its old state and the log as it
// was. So the log is fitted when raft has the new state: see Installed.
func (d *Dir) completed(s snapshotEnd) error {
	d.arrived = nil
	has, err := d.Log.has(s)
	switch {
	case err != nil:
		return fmt.Errorf("fit the log to a snapshot: %w", err)
	case has:
		return d.fit(s)
	}
	d.arrived = &s
	return nil
}

// Installed must be called when the state machine has read a snapshot, before it
// goes by it. From then on raft can no longer fail to install it (raft.go,
// installSnapshot). With an error the state machine must keep what it has.
func (d *Dir) Installed() error {
	if d.arrived == nil {
		return nil // raft started from it
	}
	if err := d.fit(*d.arrived); err != nil {
		return err
	}
	d.arrived = nil
	return nil
}

// fit fits the log, and what is in memory of it, to a new snapshot.
func (d *Dir) fit(s snapshotEnd) error {
	evict := func() {
		if c := d.cache.Load(); c != nil {
			c.evict(0, ^uint64(0))
		}
	}
	if err := d.Log.fit(s, true, evict); err != nil {
		return fmt.Errorf("fit the log to a snapshot: %w", err)
	}
	return nil
}
