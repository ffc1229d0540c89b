// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"slices"

	"github.com/hashicorp/raft"
)

// members is a change of members: the index of its entry, and all of them.
type members struct {
	index uint64
	all   raft.Configuration
}

// Members returns the newest members that the log has, or the newest snapshot, and
// the index of the entry that made them so; 0 if there is none. They may not be
// committed yet. Raft goes by them, and takes a change of members that names this
// index only as long as it does (Raft.AddVoter, prevIndex). It does not tell the
// index itself: that of its GetConfiguration is always 0.
func (l *Log) Members() (raft.Configuration, uint64) {
	l.mu.RLock()
	newest := l.snapshot.members
	if n := len(l.members); n > 0 && l.members[n-1].index > l.snapshot.index {
		newest = l.members[n-1]
	}
	l.mu.RUnlock()
	return newest.all.Clone(), newest.index
}

// noteMembers takes each new entry. The caller holds mu.
func (l *Log) noteMembers(e *raft.Log) {
	if e.Type == raft.LogConfiguration {
		l.members = append(l.members, members{e.Index, raft.DecodeConfiguration(e.Data)})
	}
}

// dropMembers takes the range of entries that are gone. The caller holds mu.
func (l *Log) dropMembers(from, to uint64) {
	l.members = slices.DeleteFunc(l.members, func(m members) bool { return m.index >= from && m.index <= to })
}

// readMembers reads changes of members, which the files were found to hold.
func (l *Log) readMembers(indexes []uint64) error {
	for _, index := range indexes {
		var e raft.Log
		if err := l.GetLog(index, &e); err != nil {
			return err
		}
		l.noteMembers(&e)
	}
	return nil
}
