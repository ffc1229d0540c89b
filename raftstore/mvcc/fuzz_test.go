// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"errors"
	"os"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func FuzzDecodeEntry(f *testing.F) {
	entry := NewEntry(nil)
	for _, c := range sampleCommands() {
		var err error
		entry, err = AppendCommand(entry, c, 1)
		testenv.NoError(f, err)
		f.Add(bytes.Clone(entry))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		count, countErr := CommandsOf(data)
		commands, err := DecodeEntry(data)
		if err != nil {
			testenv.Require(t, errors.Is(err, ErrFormat), "an error of another kind: %v", err)
			return
		}
		testenv.Require(t, countErr == nil && count == len(commands), "%d commands were counted as %d: %v", len(commands), count, countErr)
		// What decodes can be applied and encodes again.
		s := sampleState()
		results := s.ApplyEntry(s.applied+1, 1, commands)
		entry := NewEntry(nil)
		for _, c := range commands {
			before := len(entry)
			entry, err = AppendCommand(entry, c, 1)
			testenv.NoError(t, err)
			if len(entry)-before > CommandSize(c) {
				t.Fatalf("%d bytes were to be %d", len(entry)-before, CommandSize(c))
			}
		}
		again, err := DecodeEntry(entry)
		testenv.Require(t, err == nil && len(again) == len(commands), "%d commands became %d: %v", len(commands), len(again), err)
		for i, c := range again {
			testenv.Require(t, proto.Equal(c.Request, commands[i].Request), "%v became %v", commands[i].Request, c.Request)
			if c.Request = commands[i].Request; c != commands[i] {
				t.Fatalf("%+v became %+v", commands[i], c)
			}
		}
		resend(t, results)
		restored(t, s)
	})
}

// resend checks that results come to another server as they are.
func resend(t *testing.T, results []Result) []byte {
	t.Helper()
	b := testenv.Must(EncodeResults(results))(t)
	again, err := DecodeResults(b)
	testenv.Require(t, err == nil && len(again) == len(results), "%d results became %d: %v", len(results), len(again), err)
	for i, r := range again {
		switch want := results[i]; {
		case want.Err != nil:
			testenv.Require(t, r.Response == nil && errors.Is(r.Err, want.Err), "%v became %+v", want.Err, r)
		case r.Err != nil || !proto.Equal(r.Response.(proto.Message), want.Response.(proto.Message)):
			t.Fatalf("%v became %+v", want.Response, r)
		}
	}
	return b
}

func FuzzDecodeResults(f *testing.F) {
	s := sampleState()
	b := testenv.Must(EncodeResults(s.ApplyEntry(9, 1, sampleCommands())))(f)
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		results, err := DecodeResults(data)
		if err != nil {
			testenv.Require(t, errors.Is(err, ErrFormat), "an error of another kind: %v", err)
			return
		}
		resend(t, results)
	})
}

const sampleSession = 3 << positionBits // of sampleState

func sampleCommands() []Command {
	put := &pb.PutRequest{Key: []byte("/a"), Value: []byte("1"), PrevKv: true}
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("/a"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 2}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("/a")}}}},
	}
	return []Command{
		{Request: put},
		{Request: &pb.DeleteRangeRequest{Key: []byte("/"), RangeEnd: []byte("0"), PrevKv: true}},
		{Request: txn},
		{Request: &pb.LeaseGrantRequest{ID: 7, TTL: 10}},
		{Request: &pb.LeaseRevokeRequest{ID: 7}},
		{Request: &pb.CompactionRequest{Revision: 2}},
		{Request: wrapperspb.String("one")},
		{Request: put, Fence: 1},
		{Request: txn, Session: sampleSession, Seq: 9, Floor: 3},
		{Request: txn, Session: sampleSession, Seq: 9, Floor: 3, Fence: 1},
		{Request: put, Session: sampleSession, Seq: 2},
	}
}

// sampleState has keys, deletions, history, a lease, a compaction, and
// sessions with answers of all kinds.
func sampleState() *State {
	s := New()
	s.Apply(&pb.LeaseGrantRequest{ID: 1, TTL: 5})
	for _, k := range []string{"/a", "/b", "/c", "/a", "/b"} {
		s.Apply(&pb.PutRequest{Key: []byte(k), Value: []byte("value of " + k), Lease: 1})
	}
	s.Apply(&pb.DeleteRangeRequest{Key: []byte("/b")})
	s.Apply(&pb.CompactionRequest{Revision: 4})
	s.Apply(&pb.PutRequest{Key: []byte("/d"), Value: bytes.Repeat([]byte("d"), 200)})
	s.ApplyEntry(3, 1, []Command{{Request: wrapperspb.String("one")}, {Request: wrapperspb.String("two")}})
	for i, r := range []Request{
		&pb.PutRequest{Key: []byte("/a")}, &pb.PutRequest{Key: []byte("/a"), PrevKv: true}, &pb.PutRequest{Key: []byte("/a"), Lease: 99},
		&pb.DeleteRangeRequest{Key: []byte("/c"), PrevKv: true}, &pb.TxnRequest{}, &pb.CompactionRequest{Revision: 5},
		&pb.LeaseGrantRequest{ID: 2, TTL: 9}, &pb.LeaseRevokeRequest{ID: 2}, wrapperspb.String("three"),
	} {
		s.ApplyEntry(4, 1, []Command{{Request: r, Session: sampleSession, Seq: uint64(i), Floor: 1}})
	}
	return s
}

func snapshotOf(tb rapid.TB, s *State) []byte {
	tb.Helper()
	snapshot := s.Freeze().Snapshot()
	defer snapshot.Release()
	return bytesOf(tb, snapshot)
}

func bytesOf(tb rapid.TB, s *Snapshot) []byte {
	tb.Helper()
	var b bytes.Buffer
	if n, err := s.WriteTo(&b); err != nil || n != int64(b.Len()) {
		tb.Fatalf("wrote %d of %d bytes: %v", n, b.Len(), err)
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
		testenv.Must(w.Write(records))(t)
		testenv.NoError(t, w.close())
		s, err := Restore(&b)
		if err != nil {
			testenv.Require(t, errors.Is(err, ErrDamaged), "an error of another kind: %v", err)
			return
		}
		// What was restored works, and can be written again.
		resend(t, s.ApplyEntry(s.applied+1, 1, sampleCommands()))
		restored(t, s)
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

// TestDamagedSnapshotIsRefused changes every byte and every length of a snapshot.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	file := snapshotOf(t, sampleState())
	for i := range file {
		changed := bytes.Clone(file)
		changed[i] ^= 1 << (i % 8)
		testenv.ErrorIs(t, testenv.Err(Restore(bytes.NewReader(changed))), ErrDamaged, "byte %d changed", i)
		testenv.ErrorIs(t, testenv.Err(Restore(bytes.NewReader(file[:i]))), ErrDamaged, "cut to %d bytes", i)
	}
}

// TestSnapshotWithoutSessionsIsRead reads what a version without sessions wrote.
func TestSnapshotWithoutSessionsIsRead(t *testing.T) {
	file := testenv.Must(os.ReadFile("testdata/before-sessions.snapshot"))(t)
	s := testenv.Must(Restore(bytes.NewReader(file)))(t)
	if s.rev != 8 || s.compacted.Load() != 4 || s.keys != 3 || s.applied != 0 || len(s.sessions) != 0 {
		t.Errorf("got revision %d, compacted to %d, %d keys, entry %d and %d sessions",
			s.rev, s.compacted.Load(), s.keys, s.applied, len(s.sessions))
	}
	testenv.True(t, bytes.Equal(snapshotOf(t, s), file), "it is written differently")
}
