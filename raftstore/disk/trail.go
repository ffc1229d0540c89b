// SPDX-License-Identifier: Apache-2.0

package disk

// A trail says how many of the entries that a snapshot covers stay in the log: at least the number entries, and more if
// all of them take no more than bytes on disk.
type trail struct {
	entries uint64
	bytes   int64
}

// SetTrailing sets how many of the entries that the newest snapshot covers stay in the log, for followers that lack
// only a few: at least the number entries, and more if all of them take no more than bytes on disk. Without SetTrailing
// none stay.
//
// Raft's own limit, Config.TrailingLogs, is counted from the end of the log (snapshot.go, compactLogsWithTrailing).
// When a snapshot is complete, the log may have grown by more than that since the snapshot began. So raft's limit is
// set to 0, and DeleteRange keeps these entries.
func (l *Log) SetTrailing(entries uint64, bytes int64) { l.trail.Store(&trail{entries, bytes}) }

// beforeTrail returns the last of the entries up to an index that may be removed. Entries after the newest snapshot are
// not removed by compaction, but because the leader has other entries. Those are all removed.
func (l *Log) beforeTrail(to uint64) uint64 {
	t := l.trail.Load()
	l.mu.RLock()
	defer l.mu.RUnlock()
	if t == nil || to > l.snapshot.index || to == 0 {
		return to
	}
	return min(to, l.snapshot.index-min(l.snapshot.index, max(t.entries, l.entriesWithin(l.snapshot.index, t.bytes))))
}

// entriesWithin counts entries back from the index end for as long as they take no more than bytes on disk. The caller
// holds mu.
func (l *Log) entriesWithin(end uint64, bytes int64) uint64 {
	if len(l.positions) == 0 || end < l.firstIndex {
		return 0
	}
	end = min(end, l.lastIndex())
	size := func(s uint32) uint32 { return uint32(l.segments[s-uint32(l.segments[0].number)].endOffset) }
	i := int(end - l.firstIndex)
	next := recordPosition{l.positions[i].segment, size(l.positions[i].segment)}
	if i+1 < len(l.positions) && l.positions[i+1].segment == next.segment {
		next = l.positions[i+1]
	}
	count := uint64(0)
	for ; i >= 0; i-- {
		p := l.positions[i]
		if p.segment != next.segment { // the last entry in its file
			next = recordPosition{p.segment, size(p.segment)}
		}
		if bytes -= int64(next.offset - p.offset); bytes < 0 {
			break
		}
		count, next = count+1, p
	}
	return count
}
