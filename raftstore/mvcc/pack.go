// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
)

// A packed entry is the format byte below and the commands as one block of S2, a successor of Snappy that takes about a
// nanosecond a byte. The API server's data shrinks to less than half, and so does what is written to the disk and sent
// to followers.
const packedFormat = 2

const (
	// worthPacking is the least size in bytes of an entry that is packed. A smaller entry takes a page of the disk
	// either way.
	worthPacking = 512
	// maxUnpacked bounds the size of an unpacked entry, against damage and hostile input. The largest request is far
	// smaller.
	maxUnpacked = 64 << 20
)

// Pack returns the entry packed if that makes it smaller by at least an eighth, else the entry itself.
func Pack(entry []byte, level int) []byte {
	if len(entry) < worthPacking || !mayPack(level) {
		return entry
	}
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	if need := s2.MaxEncodedLen(len(entry) - 1); cap(*buf) < need {
		*buf = make([]byte, need)
	}
	packed := s2.Encode((*buf)[:cap(*buf)], entry[1:])
	if len(packed) > len(entry)-len(entry)/8 {
		return entry
	}
	return append(append(make([]byte, 0, 1+len(packed)), packedFormat), packed...)
}

// scratch holds buffers for packing and unpacking. No caller keeps a result that is in one.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// unpack calls fn with the encoded commands of an entry. fn must not keep them.
func unpack(entry []byte, fn func(commands []byte) error) error {
	if len(entry) > 0 && entry[0] == entryFormat {
		return fn(entry[1:])
	}
	if len(entry) == 0 || entry[0] != packedFormat {
		return fmt.Errorf("%w: unknown format", ErrFormat)
	}
	size, err := s2.DecodedLen(entry[1:])
	if err != nil || size > maxUnpacked {
		return fmt.Errorf("%w: packed to %d bytes: %w", ErrFormat, size, err)
	}
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	if cap(*buf) < size {
		*buf = make([]byte, size)
	}
	commands, err := s2.Decode((*buf)[:size], entry[1:])
	if err != nil {
		return fmt.Errorf("%w: it cannot be unpacked: %w", ErrFormat, err)
	}
	return fn(commands)
}

// streamMagic is the beginning of an S2 stream.
const streamMagic = "\xff\x06\x00\x00S2sTwO"

// WritePacked writes the snapshot as an S2 stream. Restore reads such a stream and an unpacked snapshot.
func (s *Snapshot) WritePacked(w io.Writer) error {
	if !mayPack(s.view.Level()) {
		_, err := s.WriteTo(w)
		return err
	}
	// It packs one block at a time: a snapshot is not urgent, and memory is scarce.
	packer := s2.NewWriter(w, s2.WriterConcurrency(1), s2.WriterBlockSize(256<<10))
	if _, err := s.WriteTo(packer); err != nil {
		return err
	}
	if err := packer.Close(); err != nil {
		return fmt.Errorf("mvcc: write snapshot: %w", err)
	}
	return nil
}

// unpackStream returns the content of a snapshot's stream, packed or not.
func unpackStream(r io.Reader) io.Reader {
	in := bufio.NewReaderSize(r, len(streamMagic))
	if start, err := in.Peek(len(streamMagic)); err != nil || !bytes.Equal(start, []byte(streamMagic)) {
		return in
	}
	return s2.NewReader(in, s2.ReaderMaxBlockSize(1<<20))
}
