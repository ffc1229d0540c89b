// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// A snapshot is a magic string and blocks (see block.go). The joined contents of the blocks are a header of two varints
// (revision, compaction revision), followed by records:
//
//	lease   = 1 id ttl
//	base    = 2 version      what a key held before the history window
//	history = 3 version      one write inside it, in order
//	raft    = 4 applied sessions           at most one, before the next two
//	session = 5 id name floor answers      by id
//	answer  = 6 seq result                 to the session before it, by seq
//	end     = 0 leases bases histories
//	version = key value create mod version lease
//
// Numbers are varints. key, value, name and result (see result.go) are preceded by their length. A deletion is a
// version whose version number is 0. Without a raft record no entry was applied, or an older version wrote the
// snapshot.
const snapshotMagic = "coracle mvcc 1\n"

const (
	recordEnd = iota
	recordLease
	recordBase
	recordHistory
	recordRaft
	recordSession
	recordAnswer
)

// maxField bounds a key or value in a snapshot, against damage that the checksums do not show and against hostile
// input.
const maxField = 64 << 20

// ErrDamaged says that a snapshot is not what was written.
var ErrDamaged = errors.New("mvcc: snapshot is damaged")

// ErrOvertaken says that a snapshot was written too slowly: meanwhile there was more new history than the snapshot may
// keep. What was written is not a snapshot.
var ErrOvertaken = errors.New("mvcc: more was written meanwhile than a snapshot may keep")

// A Snapshot is a view that is to be written as a whole, with its history window and leases. Until Release, the state
// keeps what the snapshot still has to read.
type Snapshot struct {
	view      *View
	compacted int64
	pin       *pin
}

// A pin prevents the state from pruning.
type pin struct {
	// limit is how many bytes of history it may keep; 0 means any number.
	limit     int64
	overtaken atomic.Bool
}

// Snapshot prepares to write the view. It copies nothing.
func (v *View) Snapshot() *Snapshot { return v.SnapshotWithin(0) }

// SnapshotWithin prepares to write the view to a writer that may be slow. When there are more than limit bytes of
// history, the state prunes nevertheless, and the snapshot fails with ErrOvertaken.
func (v *View) SnapshotWithin(limit int64) *Snapshot {
	sh := v.shared
	sh.pruning.Lock()
	defer sh.pruning.Unlock()
	p := &pin{limit: limit}
	sh.pins[p] = struct{}{}
	// The compaction may be newer than the view, and versions may have been pruned up to it. So the newer compaction
	// counts, up to the view's revision.
	return &Snapshot{view: v, compacted: min(sh.compacted.Load(), v.rev), pin: p}
}

// Release lets the state prune again.
func (s *Snapshot) Release() {
	sh := s.view.shared
	sh.pruning.Lock()
	defer sh.pruning.Unlock()
	delete(sh.pins, s.pin)
}

// overtakePins says whether the state may prune when there is this much history. It returns false if any pin has no
// limit, or has not reached its limit. Otherwise it drops all pins and marks them as overtaken. The caller holds
// pruning, and prunes afterwards. A snapshot that misses a version checks afterwards whether it was overtaken.
func (s *shared) overtakePins(history int64) bool {
	for p := range s.pins {
		if p.limit == 0 || history <= p.limit {
			return false
		}
	}
	for p := range s.pins {
		p.overtaken.Store(true)
		delete(s.pins, p)
	}
	return true
}

// Revision returns the store revision of the snapshot.
func (s *Snapshot) Revision() int64 { return s.view.rev }

// WriteTo writes the snapshot.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	blocks := newBlockWriter(w)
	out := recordWriter{w: bufio.NewWriterSize(blocks, blockSize), pinOvertaken: &s.pin.overtaken, level: s.view.Level()}
	blocks.raw([]byte(snapshotMagic))
	out.uvarints(s.view.rev, s.compacted)
	for _, l := range s.view.leases {
		out.byte(recordLease)
		out.uvarints(l.ID, l.TTL)
	}
	out.sessions(s.view)
	var bases int64
	s.view.tree.Scan(func(v *Version) bool {
		for v != nil && v.kv.ModRevision > s.compacted {
			v = v.prev.Load()
		}
		// A version of the compaction revision itself is in the history.
		if v != nil && v.kv.ModRevision < s.compacted && !v.Deleted() {
			out.byte(recordBase)
			out.version(v)
			bases++
		}
		return out.err == nil
	})
	history := s.view.History(s.compacted)
	for _, v := range history {
		out.byte(recordHistory)
		out.version(v)
		if out.err != nil {
			break
		}
	}
	out.byte(recordEnd) // fails if the snapshot was overtaken, so nothing is missing before this record
	out.uvarints(int64(len(s.view.leases)), bases, int64(len(history)))
	if out.err == nil {
		out.err = out.w.Flush()
	}
	if out.err == nil {
		out.err = blocks.close()
	}
	if out.err != nil {
		return blocks.written, fmt.Errorf("mvcc: write snapshot: %w", out.err)
	}
	return blocks.written, nil
}

type recordWriter struct {
	w            *bufio.Writer
	pinOvertaken *atomic.Bool
	level        int // of the cluster
	err          error
	buf          [binary.MaxVarintLen64]byte
}

// byte begins a record.
func (o *recordWriter) byte(b byte) {
	if o.err == nil && o.pinOvertaken.Load() {
		o.err = ErrOvertaken
	}
	if since := Since.Records[b]; since > o.level && o.err == nil {
		o.err = fmt.Errorf("record %d may be written from level %d on, and the cluster has level %d", b, since, o.level)
	}
	o.bytes([]byte{b})
}

func (o *recordWriter) bytes(b []byte) {
	if o.err == nil {
		_, o.err = o.w.Write(b)
	}
}

func (o *recordWriter) uvarints(ns ...int64) {
	for _, n := range ns {
		o.bytes(binary.AppendUvarint(o.buf[:0], uint64(n)))
	}
}

func (o *recordWriter) version(v *Version) {
	o.uvarints(int64(len(v.kv.Key)))
	o.bytes(v.kv.Key)
	o.uvarints(int64(len(v.kv.Value)))
	o.bytes(v.kv.Value)
	o.uvarints(v.kv.CreateRevision, v.kv.ModRevision, v.kv.Version, v.kv.Lease)
}

// Restore reads a snapshot into a new state. It returns ErrDamaged if a checksum, a length or the order is not as
// written.
func Restore(r io.Reader) (*State, error) {
	r = unpackStream(r)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, fmt.Errorf("%w: too short: %w", ErrDamaged, err)
	}
	if string(magic) != snapshotMagic {
		return nil, fmt.Errorf("%w: it does not start as a snapshot does", ErrDamaged)
	}
	in := recordReader{r: bufio.NewReaderSize(newBlockReader(r), blockSize)}
	s := New()
	s.rev = in.number()
	compacted := in.number()
	s.compacted.Store(compacted)
	s.pruned = max(compacted-1, 0) // so that Prune handles the versions of that revision
	if in.err == nil && (s.rev < 1 || compacted < 0 || compacted > s.rev) {
		in.setError("revision %d, compacted at %d", s.rev, compacted)
	}
	s.load(&in)
	s.Prune()
	if in.err == nil {
		switch _, err := in.r.ReadByte(); {
		case err == nil:
			in.setError("it goes on after its end")
		case err != io.EOF: // not errors.Is: an ErrDamaged may wrap io.EOF
			in.check(err)
		}
	}
	if in.err != nil {
		return nil, in.err
	}
	return s, nil
}

// load reads the records up to the end mark.
func (s *State) load(in *recordReader) {
	var leases, bases, histories int64
	last := s.compacted.Load()
	sessions := sessionLoader{state: s}
	for in.err == nil {
		switch tag := in.byte(); tag {
		case recordLease:
			id, ttl := in.number(), in.number()
			s.leases.byID[id] = &leaseState{ttl: ttl, keys: make(map[string]struct{})}
			leases++
		case recordBase, recordHistory:
			v := in.version()
			if in.err != nil {
				return
			}
			old := s.lookup(v.kv.Key)
			if tag == recordBase {
				bases++
				if old != nil || v.Deleted() || histories > 0 || v.kv.ModRevision >= last {
					in.setError("key %q is out of place", v.kv.Key)
					return
				}
			} else {
				histories++
				if v.kv.ModRevision < last || v.kv.ModRevision > s.rev {
					in.setError("revision %d is out of order", v.kv.ModRevision)
					return
				}
				last = v.kv.ModRevision
			}
			s.install(v, old)
			if tag == recordBase {
				s.history, s.existence = s.history[:0], existenceChanges{} // install has added it to both
			}
		case recordRaft, recordSession, recordAnswer:
			sessions.load(in, tag)
		case recordEnd:
			sessions.checkComplete(in)
			if in.number() != leases || in.number() != bases || in.number() != histories {
				in.setError("records are missing")
			}
			return
		default:
			in.setError("unknown record %d", tag)
		}
	}
}

type recordReader struct {
	r   *bufio.Reader
	err error
}

func (in *recordReader) setError(format string, args ...any) {
	if in.err == nil {
		in.err = fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
	}
}

func (in *recordReader) check(err error) {
	if err != nil && in.err == nil {
		if errors.Is(err, ErrDamaged) {
			in.err = err
			return
		}
		in.err = fmt.Errorf("%w: it ends too early: %w", ErrDamaged, err)
	}
}

func (in *recordReader) byte() byte {
	if in.err != nil {
		return 0
	}
	b, err := in.r.ReadByte()
	in.check(err)
	return b
}

func (in *recordReader) number() int64 {
	if in.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(in.r)
	in.check(err)
	return int64(n)
}

func (in *recordReader) field() []byte {
	n := in.number()
	if in.err != nil || n == 0 {
		return nil
	}
	if n < 0 || n > maxField {
		in.setError("a field of %d bytes", n)
		return nil
	}
	if n <= blockSize {
		b := make([]byte, n)
		_, err := io.ReadFull(in.r, b)
		in.check(err)
		return b
	}
	var b bytes.Buffer // grows with the bytes that exist
	_, err := io.CopyN(&b, in.r, n)
	in.check(err)
	return bytes.Clone(b.Bytes())
}

func (in *recordReader) version() *Version {
	v := &Version{}
	v.kv.Key, v.kv.Value = in.field(), in.field()
	v.kv.CreateRevision, v.kv.ModRevision = in.number(), in.number()
	v.kv.Version, v.kv.Lease = in.number(), in.number()
	return v
}
