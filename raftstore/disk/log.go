// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A Log is raft's log: a sequence of segments, of which the last, the tail, gets new records. An append is one write
// and one flush. Every read verifies checksums.
//
// An append returns when it is on disk, or when the Dir is closed.
type Log struct {
	dir   string
	space *space
	stall *stall
	ctx   context.Context
	size  int64 // of a new segment
	// writtenBytes counts the bytes of entries that were found or appended, for the snapshotter.
	writtenBytes atomic.Int64
	onGrown      func(total int64)
	newest       atomic.Pointer[snapshotEnd] // equal to snapshot, for readers that must not wait for mu
	trail        atomic.Pointer[trail]       // nil: none
	onFlushed    func(took time.Duration, bytes int)
	level        func() int // of the directory

	writing     writeLock // held by the goroutine that appends or deletes
	nextSegment *segment  // made, but not the tail yet; guarded by writing
	// superseded says that the files hold entries that a snapshot made useless and that are no longer in positions.
	// Guarded by writing.
	superseded bool
	direct     direct // of the tail; guarded by writing

	mu         sync.RWMutex // guards the fields below; held only for memory and reads
	segments   []*segment   // numbers without gaps; the last one is the tail
	firstIndex uint64       // index of the entry at positions[0]
	positions  []recordPosition
	members    []members   // the changes of members in the log, in order
	snapshot   snapshotEnd // end of the newest snapshot
	// supersededUpTo is the index of the last entry that raft still takes to be in the log although a snapshot made it
	// useless. It is used only while positions is empty.
	supersededUpTo uint64
	closed         bool
	// removed are segments that are no longer part of the log but whose files exist, in order. One goroutine at a time
	// removes them (sweep).
	removed  []*segment
	sweeping bool
	unlink   func(path string) error // os.Remove, except in tests
}

// recordPosition is the place of an entry's record.
type recordPosition struct {
	segment uint32 // lowest bits of the segment's number
	offset  uint32
}

var (
	_ raft.LogStore          = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

// FirstIndex returns the index of the oldest entry, 0 if there is none.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.positions) == 0 {
		return 0, nil
	}
	return l.firstIndex, nil
}

// LastIndex returns the index of the newest entry, 0 if there is none.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.lastIndex(), nil
}

func (l *Log) lastIndex() uint64 {
	if len(l.positions) == 0 {
		return 0
	}
	return l.firstIndex + uint64(len(l.positions)) - 1
}

func (l *Log) tail() *segment { return l.segments[len(l.segments)-1] }

// GetLog reads an entry. It returns a DamageError if the entry is not what was stored, and raft.ErrLogNotFound if there
// is none.
func (l *Log) GetLog(index uint64, out *raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.positions) == 0 || index < l.firstIndex || index > l.lastIndex() {
		return l.snapshotEntry(index, out)
	}
	p := l.positions[index-l.firstIndex]
	s := l.segments[p.segment-uint32(l.segments[0].number)]
	var h [recordHeader]byte
	if _, err := s.f.ReadAt(h[:], int64(p.offset)); err != nil {
		return newDamageError(s.path, "log entry %d cannot be read: %v", index, err)
	}
	r, ok := decodeRecord(h[:], s.number, int64(p.offset))
	if !ok || r.kind != recordEntry || r.index != index {
		return newDamageError(s.path, "log entry %d has a wrong checksum", index)
	}
	payload := make([]byte, r.payload)
	if _, err := s.f.ReadAt(payload, int64(p.offset)+recordHeader); err != nil {
		return newDamageError(s.path, "log entry %d cannot be read: %v", index, err)
	}
	if crc32.Checksum(payload, castagnoli) != r.sum {
		return newDamageError(s.path, "log entry %d has a wrong checksum", index)
	}
	r.entry(payload, out)
	return nil
}

// StoreLog appends one entry.
func (l *Log) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs appends entries. While the disk is full or failing it waits.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	dropped, err := l.store(entries)
	if err == nil && dropped {
		_ = l.sweep() // the entries are stored, so raft must not get this error; the next compaction sweeps again and returns it
	}
	return err
}

// store appends entries. dropped says whether it has removed entries that a snapshot had made useless.
func (l *Log) store(entries []*raft.Log) (dropped bool, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	defer l.stall.beginWrite(&l.stall.log)()
	if err := l.checkContinues(entries); err != nil {
		return false, err
	}
	dropped = l.superseded
	if err := l.dropSuperseded(); err != nil {
		return false, err
	}
	var size, bytes int64
	for _, e := range entries {
		n := int64(len(e.Data) + len(e.Extensions))
		size, bytes = size+recordHeader+align(n), bytes+n
	}
	tail, err := l.roomFor(size)
	if err != nil {
		return false, err
	}
	buf := make([]byte, 0, size)
	for i, e := range entries {
		r := record{segment: uint32(tail.number), offset: tail.endOffset + int64(len(buf)), batch: tail.batch + 1}
		if i == len(entries)-1 {
			r.flags = flagLast
		}
		buf = appendEntry(buf, e, r)
	}
	if err := l.append(tail, buf); err != nil {
		return false, err
	}
	l.mu.Lock()
	at := tail.endOffset
	for _, e := range entries {
		if len(l.positions) == 0 {
			l.firstIndex = e.Index
		}
		l.positions = append(l.positions, recordPosition{uint32(tail.number), uint32(at)})
		l.recordConfiguration(e)
		at += recordHeader + align(int64(len(e.Data)+len(e.Extensions)))
	}
	tail.advanceEnd(buf)
	l.supersededUpTo = 0
	l.mu.Unlock()
	l.onGrown(l.writtenBytes.Add(bytes))
	return dropped, nil
}

// append writes records after the last one of a segment and flushes them.
func (l *Log) append(s *segment, records []byte) error {
	if err := l.space.persist(l.ctx, func() error { return l.write(s, records) }); err != nil {
		return fmt.Errorf("append to %s: %w", s.path, err)
	}
	return nil
}

func (l *Log) write(s *segment, records []byte) error {
	start := l.space.clock.Now()
	done, err := l.writeDirect(s, records)
	if err == nil && !done {
		err = s.write(records)
	}
	if err != nil {
		return err
	}
	err = errors.Join(l.space.faults.Strike(l.ctx, l.space.clock, false), s.flush())
	if err == nil {
		took := l.space.clock.Since(start)
		l.stall.noteFlush(took)
		l.onFlushed(took, len(records))
	}
	return err
}

// roomFor returns the segment for a batch of this size: the tail, or a new one. The new segment is on disk before the
// tail gets the record that says so.
func (l *Log) roomFor(size int64) (*segment, error) {
	tail := l.tail()
	if tail.fits(size) && !tail.sealed {
		return tail, nil
	}
	if l.nextSegment == nil {
		err := l.space.persist(l.ctx, func() (err error) {
			if err := l.space.faults.Strike(l.ctx, l.space.clock, false); err != nil {
				return err
			}
			l.nextSegment, err = createSegment(l.dir, l.level(), tail.number+1, tail.batch+2, l.size, size)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if err := l.seal(tail); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, l.nextSegment)
	l.nextSegment = nil
	return l.tail(), nil
}

// seal writes the end record of a segment that has a successor.
func (l *Log) seal(s *segment) error {
	if s.sealed {
		return nil
	}
	r := record{kind: recordEnd, flags: flagLast, segment: uint32(s.number), offset: s.endOffset, batch: s.batch + 1}
	b := r.encode(nil)
	if err := l.append(s, b); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.advanceEnd(b)
	s.sealed = true
	if s.direct != nil {
		s.direct.Close() // all that was written with it is flushed
		s.direct = nil
	}
	return nil
}

// DeleteRange removes entries from the beginning or from the end, both indexes included. At the beginning it removes
// whole files, so remaining entries of a file may be there again after a restart. The entries that SetTrailing keeps
// stay. Appends continue while the files are removed, which takes a quarter of a second for a log of one GiB.
func (l *Log) DeleteRange(from, to uint64) error {
	last, _ := l.LastIndex()
	if err := l.deleteRange(from, to); err != nil {
		return err
	}
	if err := l.sweep(); err != nil && to < last {
		return err // of a compaction, which raft only logs; a cut of the end has succeeded even if files are left
	}
	return nil
}

func (l *Log) deleteRange(from, to uint64) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	defer l.stall.beginWrite(&l.stall.log)()
	to = l.beforeTrail(to)
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	switch {
	case last == 0 || to < first || from > last || from > to:
		return nil
	case to >= last && from <= first:
		if err := l.truncateFrom(0); err != nil {
			return err
		}
		l.removeBefore(l.tail().number)
		return nil
	case to >= last:
		return l.truncateFrom(from)
	case from <= first:
		l.mu.Lock()
		l.positions = slices.Clone(l.positions[to+1-l.firstIndex:])
		l.firstIndex = to + 1
		l.dropMembers(0, to)
		number := uint64(l.positions[0].segment)
		l.mu.Unlock()
		l.removeBefore(number)
		return nil
	}
	return fmt.Errorf("delete entries %d to %d of the log: they are in its middle", from, to)
}

// truncateFrom writes that the entries from an index on are void, or all of them if it is 0, and drops them.
func (l *Log) truncateFrom(from uint64) error {
	tail, err := l.roomFor(recordHeader)
	if err != nil {
		return err
	}
	r := record{kind: recordCut, flags: flagLast, index: from, term: l.snapshot.index, segment: uint32(tail.number), offset: tail.endOffset,
		batch: tail.batch + 1}
	b := r.encode(nil)
	if err := l.append(tail, b); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	tail.advanceEnd(b)
	l.dropPositions(from)
	return nil
}

// dropPositions drops the positions and members of cut entries.
func (l *Log) dropPositions(from uint64) {
	if from <= l.firstIndex {
		l.positions, l.members = nil, nil
		return
	}
	l.dropMembers(from, math.MaxUint64)
	if from <= l.lastIndex() {
		l.positions = l.positions[:from-l.firstIndex]
	}
}

// removeBefore removes the segments before the one with this number from the log. The next sweep removes their files.
func (l *Log) removeBefore(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.segments) > 1 && uint32(l.segments[0].number) != uint32(number) {
		l.removed = append(l.removed, l.segments[0])
		l.segments = l.segments[1:]
	}
}

// sweep removes the files of segments that are no longer part of the log, in their order. It stops at a file that
// cannot be removed: a missing file between others would count as damage.
func (l *Log) sweep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sweeping {
		return nil // the sweeping goroutine removes these, too
	}
	l.sweeping = true
	defer func() { l.sweeping = false }()
	for len(l.removed) > 0 && !l.closed {
		s := l.removed[0]
		l.mu.Unlock()
		err := l.unlink(s.path)
		l.mu.Lock()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove old segments of the log: %w", err)
		}
		if l.closed {
			break // the segment's file is closed as well
		}
		l.removed = l.removed[1:]
		if err := s.close(); err != nil {
			return fmt.Errorf("close old segments of the log: %w", err)
		}
	}
	return nil
}

func (l *Log) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var err error
	for _, s := range slices.Concat(l.removed, l.segments) {
		err = errors.Join(err, s.close())
	}
	if l.nextSegment != nil {
		err = errors.Join(err, l.nextSegment.close())
	}
	return err
}
