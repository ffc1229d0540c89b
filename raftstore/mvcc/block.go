// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// A block is its payload's length and CRC-32C, four bytes each, little endian, and the payload. An empty block ends the
// stream. The checksum covers the block's number too, so that swapped or lost blocks are detected.
const (
	blockSize   = 64 << 10
	blockHeader = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func blockSum(number uint64, payload []byte) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], number)
	return crc32.Update(crc32.Checksum(n[:], castagnoli), castagnoli, payload)
}

type blockWriter struct {
	w       io.Writer
	number  uint64
	written int64
	err     error
}

func newBlockWriter(w io.Writer) *blockWriter { return &blockWriter{w: w} }

func (b *blockWriter) raw(p []byte) {
	if b.err != nil {
		return
	}
	n, err := b.w.Write(p)
	b.written += int64(n)
	b.err = err
}

// Write writes p as blocks of at most blockSize.
func (b *blockWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) && b.err == nil {
		n := min(len(p)-done, blockSize)
		b.block(p[done : done+n])
		done += n
	}
	return done, b.err
}

func (b *blockWriter) block(p []byte) {
	var h [blockHeader]byte
	binary.LittleEndian.PutUint32(h[:4], uint32(len(p)))
	binary.LittleEndian.PutUint32(h[4:], blockSum(b.number, p))
	b.number++
	b.raw(h[:])
	b.raw(p)
}

func (b *blockWriter) close() error {
	b.block(nil)
	return b.err
}

// blockReader returns the payloads of blocks as one stream. It returns no byte before its block's checksum was
// verified.
type blockReader struct {
	r         io.Reader
	number    uint64
	buf       []byte
	remaining []byte
	done      bool
}

func newBlockReader(r io.Reader) *blockReader {
	return &blockReader{r: r, buf: make([]byte, blockSize)}
}

func (b *blockReader) Read(p []byte) (int, error) {
	for len(b.remaining) == 0 {
		if b.done {
			return 0, io.EOF
		}
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.remaining)
	b.remaining = b.remaining[n:]
	return n, nil
}

func (b *blockReader) next() error {
	var h [blockHeader]byte
	if _, err := io.ReadFull(b.r, h[:]); err != nil {
		return fmt.Errorf("%w: it ends in block %d: %w", ErrDamaged, b.number, err)
	}
	size := binary.LittleEndian.Uint32(h[:4])
	if size > blockSize {
		return fmt.Errorf("%w: block %d claims %d bytes", ErrDamaged, b.number, size)
	}
	p := b.buf[:size]
	if _, err := io.ReadFull(b.r, p); err != nil {
		return fmt.Errorf("%w: it ends in block %d: %w", ErrDamaged, b.number, err)
	}
	if blockSum(b.number, p) != binary.LittleEndian.Uint32(h[4:]) {
		return fmt.Errorf("%w: block %d has a wrong checksum", ErrDamaged, b.number)
	}
	b.number++
	b.remaining, b.done = p, size == 0
	return nil
}
