// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// A record is a header, a payload, and bytes of 0xff up to a multiple of eight. In the header, which is little endian,
// all bytes but the first four are XORed with 0xa5:
//
//	 0  CRC-32C of the rest of the header
//	 4  kind, 5 raft's log type, 6 flags, 7 zero
//	 8  length of the payload
//	12  length of the extensions, which are the payload's first part
//	16  CRC-32C of the payload as it is on disk
//	20  segment number (its lowest 32 bits)
//	24  offset in the segment
//	32  batch: how many appends came before this one in the log's life
//	40  index
//	48  term
//	56  time of the append at the leader, Unix nanoseconds
//
// Segment and offset distinguish a record from an old copy at another place. The payload is XORed with a stream of
// numbers that is made from the index. So no eight bytes of a record are all zeros, whatever was stored (except by a
// chance of one in 2^64). A sector of zeros was never written, and that distinguishes a torn write from damage.
const (
	recordHeader = 64
	recordAlign  = 8
	headerMask   = 0xa5
	padding      = 0xff
)

// Kinds of records.
const (
	// recordEntry holds one entry of Raft's log.
	recordEntry = 1
	// recordCut makes all entries from its index on void. The index 0 means all entries of the log. Its field term
	// holds the index at which the newest snapshot ended at that time.
	recordCut = 2
	// recordEnd is the last record of a segment that has a successor.
	recordEnd = 3
)

// flagLast marks the last record of a batch.
const flagLast = 1

// maxPayload is the largest payload of a record, in bytes. No log entry has nearly as much.
const maxPayload = 64 << 20

type record struct {
	kind, logType, flags byte
	payload, extensions  uint32 // lengths
	sum                  uint32
	segment              uint32
	offset               int64
	batch                uint64
	index, term          uint64
	appended             int64
}

// size returns the record's length in the file.
func (r *record) size() int64 { return recordHeader + align(int64(r.payload)) }

func align(n int64) int64 { return (n + recordAlign - 1) &^ (recordAlign - 1) }

func (r *record) encode(to []byte) []byte {
	le, start := binary.LittleEndian, len(to)
	to = append(to, 0, 0, 0, 0, r.kind, r.logType, r.flags, 0)
	to = le.AppendUint32(to, r.payload)
	to = le.AppendUint32(to, r.extensions)
	to = le.AppendUint32(to, r.sum)
	to = le.AppendUint32(to, r.segment)
	for _, n := range []uint64{uint64(r.offset), r.batch, r.index, r.term, uint64(r.appended)} {
		to = le.AppendUint64(to, n)
	}
	for i := start + 4; i < len(to); i++ {
		to[i] ^= headerMask
	}
	le.PutUint32(to[start:], crc32.Checksum(to[start+4:], castagnoli))
	return to
}

// decodeRecord reads a header. It returns false if the bytes are not the header of a record for this segment and
// offset.
func decodeRecord(b []byte, segment uint64, offset int64) (record, bool) {
	le := binary.LittleEndian
	if le.Uint32(b) != crc32.Checksum(b[4:recordHeader], castagnoli) {
		return record{}, false
	}
	var h [recordHeader]byte
	for i := range h {
		h[i] = b[i] ^ headerMask
	}
	r := record{
		kind: h[4], logType: h[5], flags: h[6],
		payload: le.Uint32(h[8:]), extensions: le.Uint32(h[12:]), sum: le.Uint32(h[16:]), segment: le.Uint32(h[20:]),
		offset: int64(le.Uint64(h[24:])), batch: le.Uint64(h[32:]),
		index: le.Uint64(h[40:]), term: le.Uint64(h[48:]), appended: int64(le.Uint64(h[56:])),
	}
	ok := r.kind >= recordEntry && r.kind <= recordEnd && r.segment == uint32(segment) && r.offset == offset &&
		r.payload <= maxPayload && r.extensions <= r.payload
	return r, ok
}

// appendEntry encodes a log entry as a record with its payload.
func appendEntry(to []byte, l *raft.Log, r record) []byte {
	r.kind, r.logType = recordEntry, byte(l.Type)
	r.index, r.term = l.Index, l.Term
	r.payload, r.extensions = uint32(len(l.Extensions)+len(l.Data)), uint32(len(l.Extensions))
	if !l.AppendedAt.IsZero() {
		r.appended = l.AppendedAt.UnixNano()
	}
	start := len(to)
	to = append(to, make([]byte, recordHeader)...)
	to = append(to, l.Extensions...)
	to = append(to, l.Data...)
	payload := to[start+recordHeader:]
	scramble(payload, l.Index)
	r.sum = crc32.Checksum(payload, castagnoli)
	r.encode(to[:start])
	for len(to)%recordAlign != 0 {
		to = append(to, padding)
	}
	return to
}

// entry decodes a log entry from a record and its verified payload. The entry keeps and changes payload.
func (r *record) entry(payload []byte, l *raft.Log) {
	scramble(payload, r.index)
	*l = raft.Log{Index: r.index, Term: r.term, Type: raft.LogType(r.logType), Data: payload[r.extensions:]}
	if r.extensions > 0 {
		l.Extensions = payload[:r.extensions:r.extensions]
	}
	if r.appended != 0 {
		l.AppendedAt = time.Unix(0, r.appended)
	}
}

// scramble XORs p with the stream of numbers for a seed (splitmix64, Steele, Lea and Flood 2014). A second call
// restores p.
func scramble(p []byte, seed uint64) {
	var word [8]byte
	for state := seed; len(p) > 0; {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		if len(p) >= 8 {
			binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)^z)
			p = p[8:]
			continue
		}
		binary.LittleEndian.PutUint64(word[:], z)
		for i := range p {
			p[i] ^= word[i]
		}
		return
	}
}
