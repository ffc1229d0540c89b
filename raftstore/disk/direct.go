// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direct writes small appends as whole sectors, without the page cache. The cache would write whole pages of 4 KiB to
// the disk each time. The kernel keeps the cache, from which the log is read, consistent: before a direct write it
// writes out what is not yet on disk, and after it drops the pages concerned.
//
// As with any other write, a direct write is on disk after the segment's flush. Its first sector repeats the end of the
// records before it, unchanged. These were acknowledged, and are as safe as a sector of the disk is while it is
// rewritten. The page cache would rewrite more of them.
type direct struct {
	refused bool   // the file system or the device refused a direct write; there is no further attempt
	buf     []byte // aligned memory for one write
}

const (
	// directAlign is an alignment that any device accepts.
	directAlign = 4096
	directBytes = sector + smallAppend + sector + zeroAhead + directAlign
)

// openDirect opens a second descriptor of a segment's file. It fails if the path has another file by now.
func openDirect(s *segment) (*os.File, error) {
	f, err := os.OpenFile(s.path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	one, err1 := f.Stat()
	other, err2 := s.f.Stat()
	if err := errors.Join(err1, err2); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !os.SameFile(one, other) {
		return nil, errors.Join(errors.New("another file has its name"), f.Close())
	}
	return f, nil
}

// writeDirect writes bytes after the last record, as segment.write does, followed by zeros up to the end of the sector
// or zeroAhead. It returns false if segment.write has to write them. segment.write may be called after it in any case.
func (l *Log) writeDirect(s *segment, b []byte) (done bool, err error) {
	from := s.endOffset &^ (sector - 1)
	to := roundUp(s.endOffset+int64(len(b)), sector)
	if l.direct.refused || len(b) > smallAppend || to > s.length {
		return false, nil
	}
	if to > s.zeroedUpTo {
		to = min(roundUp(to+zeroAhead, directAlign), s.length&^(sector-1))
	}
	if err := l.prepareDirect(s); err != nil {
		l.direct.refused = true
		return false, nil
	}
	buf := l.direct.buf[:to-from]
	n := copy(buf, s.tailBytes)
	n += copy(buf[n:], b)
	clear(buf[n:])
	_, err = s.direct.WriteAt(buf, from)
	switch {
	case err == nil:
		s.zeroedUpTo = max(s.zeroedUpTo, to)
		return true, nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed):
		return false, err
	}
	// Devices with sectors of 4 KiB refuse with EINVAL. For this and any other error the page cache is used.
	l.direct.refused = true
	return false, nil
}

// prepareDirect opens the descriptor, allocates the buffer, and reads the sector in which the records end, unless that
// is done.
func (l *Log) prepareDirect(s *segment) error {
	if l.direct.buf == nil {
		b := make([]byte, directBytes+directAlign)
		skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directAlign - 1)
		l.direct.buf = b[skip : skip+directBytes]
	}
	if s.tailBytes == nil {
		rest := make([]byte, s.endOffset&(sector-1), sector)
		if _, err := s.f.ReadAt(rest, s.endOffset-int64(len(rest))); err != nil && len(rest) > 0 {
			return err
		}
		s.tailBytes = rest
	}
	if s.direct != nil {
		return nil
	}
	f, err := openDirect(s)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.Join(os.ErrClosed, f.Close())
	}
	s.direct = f
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
