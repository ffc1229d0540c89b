// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// A segment is one file of the log. It has a header, records, and zeros up to its length, which never changes. The
// header is a magic string, the segment's number, its length, the number of its first batch, and the CRC-32C of these.
type segment struct {
	path       string
	number     uint64
	f          *os.File
	length     int64
	endOffset  int64  // offset of the next record
	batch      uint64 // of the last record before endOffset, or the one before the segment's first
	sealed     bool   // its last record says that it has a successor
	zeroedUpTo int64  // up to here the file was written, with zeros behind the records
	// direct is a second descriptor of the file, for direct writes, or nil. It is guarded by Log.writing. It is changed
	// only while Log.mu is held too.
	direct    *os.File
	tailBytes []byte // the bytes from the beginning of endOffset's sector up to endOffset; nil if not known
}

const (
	segmentMagic  = "coracle log 1\n\x00\x00"
	segmentHeader = 64
	segmentSuffix = ".segment"
	// defaultSegment is the size of a segment, in bytes. An empty store uses that much disk. Only whole segments are
	// removed, so up to one segment of deleted entries stays on the disk.
	defaultSegment = 8 << 20
	sector         = 512
	// zeroAhead is how many zeros are sometimes written behind a small append. The first write to space that is only
	// allocated costs the file system a second flush, of its journal: on ext4 that is two flushes and 12 KiB more for
	// each new block. Large appends fill blocks too fast for the zeros to save anything. They also gain nothing by
	// direct writes, see direct.go.
	zeroAhead   = 256 << 10
	smallAppend = 32 << 10
)

var zeroBlock [zeroAhead]byte

func segmentPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016d%s", number, segmentSuffix))
}

// createSegment makes a segment whose first batch has the given number. It has the given length, or a greater one if
// need is more. The segment and its space are on disk when createSegment returns.
func createSegment(dir string, level int, number, batch uint64, length, need int64) (*segment, error) {
	if err := checkForm(segmentMagic, level); err != nil {
		return nil, err
	}
	length = max(length, align(need)+segmentHeader+recordHeader)
	path := segmentPath(dir, number)
	f, err := os.OpenFile(path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	err = allocate(f, length)
	if err == nil {
		_, err = f.WriteAt(encodeSegmentHeader(number, length, batch), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		err = atomicfile.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create %s: %w", path, err), f.Close())
	}
	return &segment{path: path, number: number, f: f, length: length, endOffset: segmentHeader, batch: batch - 1}, nil
}

// allocate sets a new file's length and reserves the space for it, all zeros.
func allocate(f *os.File, length int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = io.CopyN(f, zeroReader{}, length)
	}
	return err
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func encodeSegmentHeader(number uint64, length int64, batch uint64) []byte {
	h := make([]byte, segmentHeader)
	copy(h, segmentMagic)
	binary.LittleEndian.PutUint64(h[16:], number)
	binary.LittleEndian.PutUint64(h[24:], uint64(length))
	binary.LittleEndian.PutUint64(h[32:], batch)
	binary.LittleEndian.PutUint32(h[40:], crc32.Checksum(h[:40], castagnoli))
	return h
}

// openSegment opens a segment and checks its header and length.
func openSegment(dir string, number uint64) (*segment, error) {
	path := segmentPath(dir, number)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &segment{path: path, number: number, f: f, endOffset: segmentHeader}
	if err := s.readHeader(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *segment) readHeader() error {
	info, err := s.f.Stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", s.path, err)
	}
	h := make([]byte, segmentHeader)
	if _, err := s.f.ReadAt(h, 0); err != nil {
		return newDamageError(s.path, "it is only %d bytes long", info.Size())
	}
	batch := binary.LittleEndian.Uint64(h[32:])
	s.length, s.batch = int64(binary.LittleEndian.Uint64(h[24:])), batch-1
	if string(h) != string(encodeSegmentHeader(s.number, s.length, batch)) {
		return newDamageError(s.path, "its header has a wrong checksum")
	}
	if info.Size() != s.length {
		return newDamageError(s.path, "it is %d bytes long and should have %d: it was truncated", info.Size(), s.length)
	}
	return nil
}

// fits says whether a batch of this length fits, and after it the record that ends the segment.
func (s *segment) fits(size int64) bool { return s.endOffset+size+recordHeader <= s.length }

// scan reads the records and passes each to fn, a whole batch at a time. It stops at bytes that are not a record. torn
// says whether these are the rest of an append that a crash interrupted and that was never acknowledged. Any other
// bytes that are not a record are damage.
func (s *segment) scan(fn func(record) error) (torn bool, err error) {
	in := bufio.NewReaderSize(io.NewSectionReader(s.f, s.endOffset, s.length-s.endOffset), 256<<10)
	var batch []record
	for at := s.endOffset; s.length-at >= recordHeader && !s.sealed; {
		r, size, err := s.read(in, at)
		if err != nil {
			return false, err
		}
		if r == nil {
			torn, err := s.checkTail(at, size)
			return torn || len(batch) > 0, err
		}
		if r.batch != s.batch+1 {
			return false, newDamageError(s.path, "the record at byte %d does not belong there", at)
		}
		at += size
		batch = append(batch, *r)
		if r.flags&flagLast == 0 {
			continue
		}
		for _, r := range batch {
			if err := fn(r); err != nil {
				return false, err
			}
		}
		batch = batch[:0]
		s.endOffset, s.batch, s.sealed = at, r.batch, r.kind == recordEnd
	}
	return len(batch) > 0, nil
}

// read returns the record at an offset and its size. If there is no valid record, it returns nil and the size of what
// is there instead.
func (s *segment) read(in *bufio.Reader, at int64) (*record, int64, error) {
	var h [recordHeader]byte
	if _, err := io.ReadFull(in, h[:]); err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", s.path, err)
	}
	r, ok := decodeRecord(h[:], s.number, at)
	if !ok {
		return nil, recordHeader, nil
	}
	if at+r.size() > s.length {
		return nil, 0, newDamageError(s.path, "the record at byte %d reaches beyond the end", at)
	}
	sum := crc32.New(castagnoli)
	if _, err := io.CopyN(sum, in, int64(r.payload)); err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", s.path, err)
	}
	if _, err := in.Discard(int(align(int64(r.payload)) - int64(r.payload))); err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", s.path, err)
	}
	if sum.Sum32() != r.sum {
		return nil, r.size(), nil
	}
	return &r, r.size(), nil
}

// checkTail decides what is at an offset where a record of the given size, or at least its header, should be: nothing,
// a torn append, or damage. An interrupted append leaves at least one sector unwritten, hence all zeros, and no record
// of a later batch can be behind it.
func (s *segment) checkTail(at, size int64) (torn bool, err error) {
	rest, err := s.restFrom(at)
	if err != nil || len(rest) == 0 {
		return false, err
	}
	if !hasUnwritten(rest, at, size) {
		return false, newDamageError(s.path, "the record at byte %d has a wrong checksum", at)
	}
	for i := 0; i+recordHeader <= len(rest); i += recordAlign {
		if r, ok := decodeRecord(rest[i:], s.number, at+int64(i)); ok && r.batch > s.batch+1 {
			return false, newDamageError(s.path, "the record at byte %d is gone, and later ones are there", at)
		}
	}
	return true, nil
}

// restFrom reads from an offset to the last byte that is not zero.
func (s *segment) restFrom(at int64) ([]byte, error) {
	end := at // offset behind the last byte that is not zero
	chunk := make([]byte, 64<<10)
	for from := at; from < s.length; {
		n, err := s.f.ReadAt(chunk[:min(int64(len(chunk)), s.length-from)], from)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", s.path, err)
		}
		if used := len(bytes.TrimRight(chunk[:n], "\x00")); used > 0 {
			end = from + int64(used)
		}
		from += int64(n)
	}
	rest := make([]byte, end-at)
	if _, err := s.f.ReadAt(rest, at); err != nil && len(rest) > 0 {
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	return rest, nil
}

// hasUnwritten says whether, in the first size bytes of rest, the bytes of some sector are all zeros. rest starts at
// the given offset of the file, and the file has only zeros beyond rest.
func hasUnwritten(rest []byte, offset, size int64) bool {
	for from := int64(0); from < size; {
		to := min(size, (offset+from)/sector*sector+sector-offset)
		if isZero(rest, from, to) {
			return true
		}
		from = to
	}
	return false
}

func isZero(rest []byte, from, to int64) bool {
	for i := from; i < min(to, int64(len(rest))); i++ {
		if rest[i] != 0 {
			return false
		}
	}
	return true
}

// zeroTail writes zeros over everything behind the last record, after a torn append.
func (s *segment) zeroTail() error {
	rest, err := s.restFrom(s.endOffset)
	if err != nil {
		return err
	}
	if _, err := s.f.WriteAt(make([]byte, len(rest)), s.endOffset); err != nil {
		return fmt.Errorf("clean %s: %w", s.path, err)
	}
	return s.f.Sync()
}

// advanceEnd moves end behind a batch that is on disk.
func (s *segment) advanceEnd(b []byte) {
	s.endOffset, s.batch = s.endOffset+int64(len(b)), s.batch+1
	if n := int(s.endOffset & (sector - 1)); n <= len(b) {
		s.tailBytes = append(s.tailBytes[:0], b[len(b)-n:]...)
	} else if s.tailBytes != nil {
		s.tailBytes = append(s.tailBytes, b...)
	}
}

// write writes bytes after the last record. They are on disk after flush. It does not move end, so that it can be
// repeated: a failed flush may have dropped the bytes.
func (s *segment) write(b []byte) error {
	if _, err := s.f.WriteAt(b, s.endOffset); err != nil {
		return err
	}
	end := s.endOffset + int64(len(b))
	if end <= s.zeroedUpTo || len(b) > smallAppend {
		return nil
	}
	ahead := zeroBlock[:min(zeroAhead, s.length-end)]
	if _, err := s.f.WriteAt(ahead, end); err != nil {
		return err
	}
	s.zeroedUpTo = end + int64(len(ahead))
	return nil
}

func (s *segment) flush() error { return unix.Fdatasync(int(s.f.Fd())) }

func (s *segment) close() error {
	err := s.f.Close()
	if s.direct != nil {
		err = errors.Join(err, s.direct.Close())
	}
	return err
}
