// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"slices"

	"github.com/hashicorp/raft"
)

// members is a change of members: the index of its log entry, and all members after it.
type members struct {
	index uint64
	all   raft.Configuration
}

// Members returns the newest members in the log, or else in the newest snapshot. They may not be committed yet. It also
// returns the index of the log entry that set them, or 0 if there is none. Raft accepts a change that names this index
// (Raft.AddVoter, prevIndex) only while these are its newest members. Raft itself does not provide the index: the one
// of its GetConfiguration is always 0.
func (l *Log) Members() (raft.Configuration, uint64) {
	l.mu.RLock()
	newest := l.snapshot.members
	if n := len(l.members); n > 0 && l.members[n-1].index > l.snapshot.index {
		newest = l.members[n-1]
	}
	l.mu.RUnlock()
	return newest.all.Clone(), newest.index
}

// recordConfiguration adds a new entry's members, if it changes them. The caller holds mu.
func (l *Log) recordConfiguration(e *raft.Log) {
	if e.Type == raft.LogConfiguration {
		l.members = append(l.members, members{e.Index, raft.DecodeConfiguration(e.Data)})
	}
}

// dropMembers drops the members of removed entries, a range of indexes. The caller holds mu.
func (l *Log) dropMembers(from, to uint64) {
	l.members = slices.DeleteFunc(l.members, func(m members) bool { return m.index >= from && m.index <= to })
}

// readMembers reads the changes of members at the given indexes.
func (l *Log) readMembers(indexes []uint64) error {
	for _, index := range indexes {
		var e raft.Log
		if err := l.GetLog(index, &e); err != nil {
			return err
		}
		l.recordConfiguration(&e)
	}
	return nil
}
