// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
)

// scannedLog is the content of a log's files, before anything is changed.
type scannedLog struct {
	dir           string
	segments      []*segment
	tornSegment   *segment // segment that ends with an append that a crash interrupted
	bytes         int64    // of entries
	term          uint64   // greatest term of an entry
	emptiedUpTo   uint64   // index up to which the log's cuts say that a snapshot existed
	leftoverFiles []string // files that a crash has kept from being removed

	firstIndex uint64
	positions  []recordPosition
	members    []uint64 // indexes of the entries that change members
}

// scanLog reads all segments of a directory and verifies them.
func scanLog(dir string) (*scannedLog, error) {
	numbers, err := segmentNumbers(dir)
	if err != nil {
		return nil, err
	}
	if len(numbers) == 0 {
		return nil, newDamageError(dir, "there is no log in it")
	}
	l := &scannedLog{dir: dir}
	numbers = l.setLeftoverAside(numbers)
	for i, n := range numbers {
		if err := l.scan(n, i == len(numbers)-1); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	return l, nil
}

func segmentNumbers(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the log: %w", err)
	}
	var numbers []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			return nil, newDamageError(filepath.Join(dir, e.Name()), "its name is not a segment's")
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// setLeftoverAside returns the newest numbers without gaps, and notes the files of the others as leftover. Segments are
// removed oldest first, but after a power cut an older one may be there again. If a segment is missing that is needed,
// that shows in the comparison with the snapshot.
func (l *scannedLog) setLeftoverAside(numbers []uint64) []uint64 {
	i := len(numbers) - 1
	for i > 0 && numbers[i-1] == numbers[i]-1 {
		i--
	}
	for _, n := range numbers[:i] {
		l.leftoverFiles = append(l.leftoverFiles, segmentPath(l.dir, n))
	}
	return numbers[i:]
}

func (l *scannedLog) scan(number uint64, newest bool) error {
	s, err := openSegment(l.dir, number)
	if err != nil {
		return err
	}
	before := l.segments
	l.segments = append(l.segments, s)
	if len(before) > 0 {
		if err := l.checkFollows(before[len(before)-1], s); err != nil {
			return err
		}
	}
	torn, err := s.scan(func(r record) error { return l.add(s, r) })
	if err != nil {
		return err
	}
	if torn {
		if l.tornSegment != nil {
			return newDamageError(l.tornSegment.path, "the record at byte %d has a wrong checksum", l.tornSegment.endOffset)
		}
		l.tornSegment = s
	}
	if newest && s.sealed {
		return newDamageError(segmentPath(l.dir, number+1), "it is missing")
	}
	// A segment is sealed when its successor exists. A crash in between leaves an empty successor.
	if len(before) > 0 && !before[len(before)-1].sealed && (s.endOffset > segmentHeader || torn || !newest) {
		prev := before[len(before)-1]
		return newDamageError(prev.path, "the record at byte %d is gone, and later ones are there", prev.endOffset)
	}
	return nil
}

// checkFollows checks that no batch is missing between two segments. The seal counts as a batch.
func (l *scannedLog) checkFollows(prev, s *segment) error {
	want := prev.batch
	if !prev.sealed {
		want++
	}
	if s.batch != want {
		return newDamageError(s.path, "it starts with append %d, and the one before ends with %d", s.batch+1, prev.batch)
	}
	return nil
}

func (l *scannedLog) add(s *segment, r record) error {
	switch r.kind {
	case recordEntry:
		if len(l.positions) == 0 {
			l.firstIndex = r.index
		}
		if want := l.firstIndex + uint64(len(l.positions)); r.index != want {
			return newDamageError(s.path, "log entry %d comes where %d should", r.index, want)
		}
		l.positions = append(l.positions, recordPosition{uint32(s.number), uint32(r.offset)})
		if raft.LogType(r.logType) == raft.LogConfiguration {
			l.members = append(l.members, r.index)
		}
		l.bytes, l.term = l.bytes+int64(r.payload), max(l.term, r.term)
	case recordCut:
		cut := Log{firstIndex: l.firstIndex, positions: l.positions}
		cut.dropPositions(r.index)
		l.positions, l.emptiedUpTo = cut.positions, max(l.emptiedUpTo, r.term)
		end := l.firstIndex + uint64(len(l.positions))
		l.members = slices.DeleteFunc(l.members, func(index uint64) bool { return index >= end })
	}
	return nil
}

// checkStart refuses a log that does not reach back to the newest snapshot, since entries between them are lost. It
// also refuses variables that are older than the log: raft saves a term before it stores an entry of that term.
func (l *scannedLog) checkStart(s snapshotEnd, v savedVars) error {
	vars := filepath.Join(filepath.Dir(l.dir), varsFile)
	term := max(l.term, s.term)
	switch {
	case len(l.positions) > 0 && l.firstIndex > s.index+1:
		return newDamageError(l.dir, "it starts with log entry %d, and the newest snapshot ends with entry %d: entries are missing",
			l.firstIndex, s.index)
	case len(l.positions) == 0 && l.emptiedUpTo > s.index:
		return newDamageError(filepath.Join(filepath.Dir(l.dir), snapshotsDir), "a snapshot up to entry %d or later is missing", l.emptiedUpTo)
	case term > 0 && len(v.values) == 0:
		return newDamageError(vars, "the server's term is missing")
	case term > v.term:
		return newDamageError(vars, "it says that the server's term is %d, and there is an entry of term %d: it is an older copy", v.term, term)
	}
	return nil
}

// repair finishes what a crash interrupted: it removes an append that was never acknowledged, removes old segments, and
// seals a segment that has a successor.
func (l *scannedLog) repair(into *Log) error {
	if l.tornSegment != nil {
		if err := l.tornSegment.zeroTail(); err != nil {
			return err
		}
	}
	for _, path := range l.leftoverFiles {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove an old segment of the log: %w", err)
		}
	}
	if n := len(l.segments); n > 1 && !l.segments[n-2].sealed {
		return into.seal(l.segments[n-2])
	}
	return nil
}

func (l *scannedLog) close() error {
	var err error
	for _, s := range l.segments {
		err = errors.Join(err, s.close())
	}
	return err
}
