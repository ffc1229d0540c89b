// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// segmentCount is the number of files into which the limit is divided. Dropping the oldest output removes one of these
// files.
const segmentCount = 8

// spool is a bounded queue of bytes in files. It is not safe for concurrent use.
type spool struct {
	dir, name string
	limit     int64
	size      int64 // bytes in all segments, delivered or not: what they take on disk
	number    int   // number of the next segment's file
	segments  []*segment
	lostBytes int64 // bytes that could not be stored since the last segment was begun
	lostCut   bool  // whether the lost bytes end in the middle of a line
}

// segment is one file of the queue.
type segment struct {
	f       *os.File
	written int64
	read    int64
	// missingBefore is the number of output bytes that are missing before the segment's first byte. marker is the
	// undelivered rest of the line that reports it.
	missingBefore int64
	marker        []byte
	// resumesMidLine says that the missing bytes ended in the middle of a line. The rest of that line is not delivered.
	resumesMidLine bool
	opened         bool
}

func newSpool(dir, name string, limit int64) *spool {
	return &spool{dir: dir, name: name, limit: limit}
}

// exceedsLimit says whether adding n bytes would exceed the limit, so that older bytes had to be dropped.
func (s *spool) exceedsLimit(n int) bool { return s.size+int64(n) > s.limit }

func (s *spool) empty() bool {
	for _, p := range s.segments {
		if !p.drained() {
			return false
		}
	}
	return s.lostBytes == 0
}

func (p *segment) drained() bool {
	return p.read == p.written && len(p.marker) == 0 && (p.opened || p.missingBefore == 0)
}

// append adds b and drops the oldest output beyond the limit. Bytes that a full or failing disk does not take are
// counted as missing: stopping the container because of its log would be worse.
func (s *spool) append(b []byte) {
	for s.exceedsLimit(len(b)) && len(s.segments) > 0 {
		s.dropOldest()
	}
	tail, err := s.tail(int64(len(b)))
	if err != nil {
		s.lose(b)
		return
	}
	n, err := tail.f.WriteAt(b, tail.written)
	tail.written += int64(n)
	s.size += int64(n)
	if err != nil {
		s.lose(b[n:])
	}
}

// lose counts bytes that cannot be stored.
func (s *spool) lose(b []byte) {
	s.lostBytes += int64(len(b))
	s.lostCut = len(b) > 0 && b[len(b)-1] != '\n'
}

// tail returns the segment to which n bytes are appended, and makes a new one when the last is full or bytes were lost.
func (s *spool) tail(n int64) (*segment, error) {
	if k := len(s.segments); k > 0 && s.lostBytes == 0 {
		if last := s.segments[k-1]; last.written+n <= s.limit/segmentCount {
			return last, nil
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, fmt.Sprintf("%s.%d", s.name, s.number))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	s.number++
	p := &segment{f: f, missingBefore: s.lostBytes, resumesMidLine: s.lostBytes > 0 && s.lostCut}
	s.lostBytes = 0
	s.segments = append(s.segments, p)
	return p, nil
}

// dropOldest removes the first segment and adds its unread bytes to the missing bytes of the next segment.
func (s *spool) dropOldest() {
	first := s.segments[0]
	unseen, cut := first.missingBefore+first.written-first.read, first.endsCut()
	s.discard()
	if len(s.segments) > 0 {
		s.segments[0].missingBefore += unseen
		s.segments[0].resumesMidLine = s.segments[0].resumesMidLine || cut
		return
	}
	s.lostBytes, s.lostCut = s.lostBytes+unseen, cut
}

// endsCut says whether the segment's last byte is not the end of a line.
func (p *segment) endsCut() bool {
	last := make([]byte, 1)
	_, err := p.f.ReadAt(last, p.written-1)
	return err == nil && last[0] != '\n'
}

// discard removes the first segment's file.
func (s *spool) discard() {
	first := s.segments[0]
	s.size -= first.written
	first.f.Close()
	os.Remove(first.f.Name())
	s.segments = s.segments[1:]
}

// peek returns the bytes that follow in the spool, read into buf, without removing them. No bytes mean that the spool
// is empty.
func (s *spool) peek(buf []byte) (*segment, []byte) {
	for len(s.segments) > 1 && s.segments[0].drained() {
		s.discard()
	}
	if len(s.segments) == 0 {
		if s.lostBytes == 0 {
			return nil, nil
		}
		// Only missing bytes are left, which the disk did not take. A segment for them lets the reader see the marker.
		if _, err := s.tail(0); err != nil {
			s.lostBytes = 0
			return nil, nil
		}
	}
	first := s.segments[0]
	if !first.opened {
		first.open(buf)
	}
	if len(first.marker) > 0 {
		return first, first.marker
	}
	want := min(int64(len(buf)), first.written-first.read)
	n, err := first.f.ReadAt(buf[:want], first.read)
	if err != nil && n == 0 && want > 0 {
		// The disk lost bytes that it had taken. Count them as missing and continue.
		first.missingBefore += first.written - first.read
		first.read, first.opened = first.written, false
		return s.peek(buf)
	}
	return first, buf[:n]
}

// open prepares the marker of missing bytes and skips the rest of a line whose beginning is missing.
func (p *segment) open(buf []byte) {
	p.opened = true
	if p.missingBefore == 0 {
		return
	}
	want := min(int64(len(buf)), p.written-p.read)
	if n, _ := p.f.ReadAt(buf[:want], p.read); n > 0 && p.resumesMidLine {
		if i := bytes.IndexByte(buf[:n], '\n'); i >= 0 {
			p.read += int64(i + 1)
			p.missingBefore += int64(i + 1)
		}
	}
	// The marker begins with a line end, because the last delivered line may have had none.
	p.marker = fmt.Appendf(nil, "\n[coracle: this output was not read for a while and its buffer was full: %d bytes are missing here]\n",
		p.missingBefore)
}

// advance removes from the segment the first n bytes that next returned.
func (s *spool) advance(p *segment, n int) {
	if p == nil {
		return
	}
	if len(p.marker) > 0 {
		if p.marker = p.marker[n:]; len(p.marker) == 0 {
			p.missingBefore = 0 // reported
		}
		return
	}
	p.read += int64(n)
}

func (s *spool) remove() {
	for len(s.segments) > 0 {
		s.discard()
	}
	s.lostBytes = 0
}
