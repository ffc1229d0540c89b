// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// put is a put of a session.
func put(session, seq, floor uint64, value string) Command {
	return Command{
		Request: &pb.PutRequest{Key: []byte("k"), Value: []byte(value), PrevKv: true},
		Session: session, Seq: seq, Floor: floor,
	}
}

// open opens a session and fails the test if it cannot.
func open(tb testing.TB, s *State, index uint64, name string) uint64 {
	tb.Helper()
	r := s.ApplyEntry(index, 1, []Command{{Request: wrapperspb.String(name)}})[0]
	testenv.NoError(tb, r.Err)
	return r.Response.(*wrapperspb.UInt64Value).Value
}

func TestSessionIDs(t *testing.T) {
	s := New()
	opens := make([]Command, 3)
	for i := range opens {
		opens[i].Request = wrapperspb.String(fmt.Sprint("server ", i))
	}
	for i, r := range s.ApplyEntry(7, 1, opens) {
		testenv.Equal(t, r.Response.(*wrapperspb.UInt64Value).Value, 7<<12|uint64(i), "session %d has id", i)
	}
	// More than an entry has positions: still no id twice, nor in the next entry.
	opens = make([]Command, 1<<positionBits+10)
	for i := range opens {
		opens[i].Request = wrapperspb.String("server")
	}
	s.ApplyEntry(8, 1, opens)
	if id, last := open(t, s, 9, "next"), s.sessions[len(s.sessions)-2].id; id <= last {
		t.Errorf("id %d after %d", id, last)
	}
	testenv.Equal(t, len(s.sessions), 5, "sessions:")
	testenv.Equal(t, s.Apply(wrapperspb.String(string(make([]byte, maxSessionName+1)))).Err, errSessionName, "a name that is too long:")
}

func TestSessionsAreBounded(t *testing.T) {
	s := New()
	first := open(t, s, 1, "first")
	second := open(t, s, 2, "second")
	for i := range uint64(maxSessions - 1) {
		open(t, s, 3+i, fmt.Sprint("more ", i))
	}
	got := s.ApplyEntry(5000, 1, []Command{put(first, 1, 1, "a"), put(second, 1, 1, "b")})
	testenv.True(t, got[0].Err == ErrSession && got[1].Err == nil && len(s.sessions) == maxSessions,
		"got %+v, %d sessions", got, len(s.sessions))
	restored(t, s)
}

// TestAnswersAreBounded has a session whose floor does not rise.
func TestAnswersAreBounded(t *testing.T) {
	s := New()
	id := open(t, s, 1, "server")
	last := uint64(maxRemembered + 100)
	for seq := range last {
		s.ApplyEntry(2+seq, 1, []Command{put(id, seq, 0, "v")})
	}
	ses := s.session(id)
	testenv.False(t, len(ses.results) != maxRemembered || ses.floor != 100, "%d answers from %d on", len(ses.results), ses.floor)
	got := s.ApplyEntry(1<<20, 1, []Command{put(id, 99, 0, "w"), put(id, 100, 0, "w"), put(id, last-1, 0, "w")})
	testenv.True(t, got[0].Err == ErrStale && got[1].Err == nil && got[2].Err == nil && s.rev == int64(last)+1,
		"got %+v at revision %d", got, s.rev)
	restored(t, s)
}

// TestAnswerBytesAreBounded has answers that carry values.
func TestAnswerBytesAreBounded(t *testing.T) {
	s := New()
	id := open(t, s, 1, "server")
	value := string(make([]byte, 256<<10))
	for seq := range uint64(100) {
		s.ApplyEntry(2+seq, 1, []Command{put(id, seq, 0, value)})
	}
	ses := s.session(id)
	var sum int64
	for i := range ses.results {
		sum += ses.results[i].size()
	}
	if sum != ses.bytes || sum > maxSessionBytes || len(ses.results) < 60 {
		t.Errorf("%d answers of %d bytes, counted as %d", len(ses.results), sum, ses.bytes)
	}
	s = restored(t, s)
	// Nothing is forgotten that the floor does not say is forgotten.
	if got := s.ApplyEntry(999, 1, []Command{put(id, s.session(id).floor, 0, "")}); got[0].Err != nil || s.rev != 101 {
		t.Errorf("got %+v at revision %d", got, s.rev)
	}
}

func TestLargeAnswerIsForgotten(t *testing.T) {
	s := New()
	id := open(t, s, 1, "server")
	for i := range 3 {
		s.Apply(&pb.PutRequest{Key: fmt.Append(nil, i), Value: make([]byte, maxResult/2)})
	}
	c := Command{Request: &pb.DeleteRangeRequest{Key: []byte("0"), RangeEnd: []byte{0}, PrevKv: true}, Session: id, Seq: 1}
	first := s.ApplyEntry(2, 1, []Command{c})[0]
	if d, ok := first.Response.(*pb.DeleteRangeResponse); !ok || len(d.PrevKvs) != 3 {
		t.Fatalf("got %+v", first)
	}
	rev := s.rev
	for _, s := range []*State{s, restored(t, s)} {
		if again := s.ApplyEntry(3, 1, []Command{c})[0]; again.Err != ErrResultDropped || s.rev != rev {
			t.Errorf("again: %+v at revision %d, want %d", again, s.rev, rev)
		}
	}
}

// TestRepeatIsNobodysProperty changes what callers may change.
func TestRepeatIsNobodysProperty(t *testing.T) {
	s := New()
	id := open(t, s, 1, "server")
	for i := range 4 {
		r := s.ApplyEntry(uint64(i+2), 1, []Command{put(id, 1, 0, "v")})[0].Response.(*pb.PutResponse)
		testenv.Require(t, r.PrevKv == nil && r.Header.Revision == 2 && r.Header.MemberId == 0, "attempt %d got %v", i, r)
		r.Header.Revision, r.Header.MemberId, r.PrevKv = 99, 99, &mvccpb.KeyValue{}
	}
}

// TestViewsKeepSessions writes snapshots of old views while answers arrive
// late, in between, and are forgotten.
func TestViewsKeepSessions(t *testing.T) {
	seed := testenv.Seed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	s := New()
	id := open(t, s, 1, "server")
	var base uint64
	step := func(i uint64) {
		var commands []Command
		for range 1 + random.IntN(4) {
			commands = append(commands, put(id, base+random.Uint64N(20), base, "v"))
		}
		if random.IntN(4) == 0 {
			base += random.Uint64N(6)
		}
		s.ApplyEntry(2+i, 1, commands)
	}
	var views []*View
	var files [][]byte
	for i := range uint64(500) {
		step(i)
		views = append(views, s.Freeze())
		files = append(files, viewBytes(t, views[i]))
	}
	done := make(chan error)
	go func() {
		for i, v := range views {
			if !bytes.Equal(viewBytes(t, v), files[i]) {
				done <- fmt.Errorf("seed %d: view %d changed", seed, i)
				return
			}
		}
		done <- nil
	}()
	for i := range uint64(2000) {
		step(500 + i)
		s.Freeze()
	}
	testenv.NoError(t, <-done)
}

// viewBytes is what a view's snapshot says about sessions.
func viewBytes(t *testing.T, v *View) []byte {
	var b bytes.Buffer
	out := recordWriter{w: bufio.NewWriter(&b), pinOvertaken: &atomic.Bool{}}
	out.sessions(v)
	if out.err == nil {
		out.err = out.w.Flush()
	}
	testenv.Check(t, out.err)
	return b.Bytes()
}

// restored writes a state and reads it back, and compares the bytes of both.
func restored(tb testing.TB, s *State) *State {
	tb.Helper()
	file := snapshotOf(tb, s)
	again := testenv.Must(Restore(bytes.NewReader(file)))(tb)
	testenv.Require(tb, bytes.Equal(snapshotOf(tb, again), file), "it is written differently after it was read")
	return again
}

func TestRequestsThatGrowTheStoreAreKnown(t *testing.T) {
	put := &pb.PutRequest{Key: []byte("k")}
	txn := func(ops ...*pb.RequestOp) *pb.TxnRequest { return &pb.TxnRequest{Failure: ops} }
	putOp := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	deleteOp := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k")}}}
	nest := func(r *pb.TxnRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
	}
	for _, r := range []Request{put, txn(putOp), &pb.TxnRequest{Success: []*pb.RequestOp{putOp}}, txn(deleteOp, nest(txn(putOp))), &pb.LeaseGrantRequest{}} {
		testenv.True(t, Added(r) > 0, "%v does not grow", r)
	}
	for _, r := range []Request{
		txn(), txn(deleteOp), txn(nest(txn(deleteOp))), &pb.DeleteRangeRequest{}, &pb.CompactionRequest{},
		&pb.LeaseRevokeRequest{}, &pb.RangeRequest{}, wrapperspb.String("server"),
	} {
		testenv.False(t, Added(r) > 0, "%v grows", r)
	}
}
