// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func FuzzDecodeEntry(f *testing.F) {
	entry := NewEntry(nil)
	for _, r := range sampleCommands() {
		var err error
		if entry, err = AppendCommand(entry, Command{Request: r}); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(entry))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		reqs, err := DecodeEntry(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		// What decodes can be applied and encodes again.
		s, entry := New(), NewEntry(nil)
		s.ApplyEntry(1, 1, reqs)
		for _, r := range reqs {
			if entry, err = AppendCommand(entry, r); err != nil {
				t.Fatal(err)
			}
		}
		if again, err := DecodeEntry(entry); err != nil || len(again) != len(reqs) {
			t.Fatalf("%d commands became %d: %v", len(reqs), len(again), err)
		}
	})
}

func sampleCommands() []Request {
	put := &pb.PutRequest{Key: []byte("/a"), Value: []byte("1"), PrevKv: true}
	return []Request{
		put,
		&pb.DeleteRangeRequest{Key: []byte("/"), RangeEnd: []byte("0")},
		&pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte("/a"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 2}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("/a")}}}},
		},
		&pb.LeaseGrantRequest{ID: 7, TTL: 10},
		&pb.LeaseRevokeRequest{ID: 7},
		&pb.CompactionRequest{Revision: 2},
	}
}

// sampleState has keys, deletions, history, a lease and a compaction.
func sampleState() *State {
	s := New()
	s.Apply(&pb.LeaseGrantRequest{ID: 1, TTL: 5})
	for _, k := range []string{"/a", "/b", "/c", "/a", "/b"} {
		s.Apply(&pb.PutRequest{Key: []byte(k), Value: []byte("value of " + k), Lease: 1})
	}
	s.Apply(&pb.DeleteRangeRequest{Key: []byte("/b")})
	s.Apply(&pb.CompactionRequest{Revision: 4})
	s.Apply(&pb.PutRequest{Key: []byte("/d"), Value: bytes.Repeat([]byte("d"), 200)})
	return s
}

func snapshotOf(tb testing.TB, s *State) []byte {
	tb.Helper()
	snapshot := s.Freeze().Snapshot()
	defer snapshot.Release()
	var b bytes.Buffer
	if _, err := snapshot.WriteTo(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// FuzzRestore gives records behind right checksums, so that the fuzzer gets
// past them.
func FuzzRestore(f *testing.F) {
	file := snapshotOf(f, sampleState())
	f.Add(file[len(snapshotMagic)+blockHeader : len(file)-blockHeader])
	f.Fuzz(func(t *testing.T, records []byte) {
		var b bytes.Buffer
		b.WriteString(snapshotMagic)
		w := newBlockWriter(&b)
		if _, err := w.Write(records); err != nil {
			t.Fatal(err)
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
		s, err := Restore(&b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		// What was restored works, and can be written again.
		for _, r := range sampleCommands() {
			s.Apply(r)
		}
		if _, err := Restore(bytes.NewReader(snapshotOf(t, s))); err != nil {
			t.Fatalf("written again it cannot be read: %v", err)
		}
	})
}

// FuzzRestoreFile gives whole files.
func FuzzRestoreFile(f *testing.F) {
	f.Add(snapshotOf(f, sampleState()))
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, err := Restore(bytes.NewReader(file)); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}

// TestDamagedSnapshot changes every byte and every length of a snapshot.
func TestDamagedSnapshot(t *testing.T) {
	file := snapshotOf(t, sampleState())
	for i := range file {
		changed := bytes.Clone(file)
		changed[i] ^= 1 << (i % 8)
		if _, err := Restore(bytes.NewReader(changed)); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := Restore(bytes.NewReader(file[:i])); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}
