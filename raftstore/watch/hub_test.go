// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOvertakenByCompaction makes the state jump, as a snapshot from the leader
// does, beyond what the history still has. A watcher that was in step must say
// that it missed something, whatever its range.
func TestOvertakenByCompaction(t *testing.T) {
	ranges := map[string][2]string{
		"a key": {"key", ""}, "a range": {"k", "l"}, "a range without end": {"k", "\x00"}, "all": {"\x00", "\x00"},
	}
	for name, r := range ranges {
		t.Run(name, func(t *testing.T) {
			state := mvcc.New()
			view := state.Freeze()
			h := NewHub(Options{View: func() *mvcc.View { return view }})
			w, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte(r[0]), RangeEnd: []byte(r[1])})
			h.dispatch(view)
			if d, ok := w.poll(); ok {
				t.Fatalf("before anything happened: %+v", d)
			}
			for range 10 {
				state.Apply(&pb.PutRequest{Key: []byte("key"), Value: []byte("v")})
			}
			state.Apply(&pb.CompactionRequest{Revision: 9})
			view = state.Freeze()
			h.dispatch(view)
			d, ok := w.poll()
			testenv.Require(t, ok && d.Compacted == 9, "%+v, %v: the watcher does not know what it missed", d, ok)
		})
	}
}

// TestStateMachinePutBack has raft install a snapshot a second time, after
// entries that follow it: the hub sees revisions again.
func TestStateMachinePutBack(t *testing.T) {
	state := mvcc.New()
	put := func() *mvcc.View {
		state.Apply(&pb.PutRequest{Key: []byte("a")})
		return state.Freeze()
	}
	now := put()
	h := NewHub(Options{View: func() *mvcc.View { return now }})
	w, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte("a")})
	if d, ok := w.poll(); ok { // looks at the history once
		t.Fatalf("%v", d)
	}
	h.dispatch(now)
	w.poll()
	snapshot := put()
	h.dispatch(snapshot)
	last := put()
	h.dispatch(last)
	for _, now = range []*mvcc.View{snapshot, last} {
		h.dispatch(now)
	}
	var got []int64
	for d, ok := w.poll(); ok; d, ok = w.poll() {
		for _, e := range d.Events {
			got = append(got, e.Kv.ModRevision)
		}
	}
	if want := []int64{snapshot.Revision(), last.Revision()}; !slices.Equal(got, want) {
		t.Fatalf("revisions %v, want %v", got, want)
	}
}

// TestOverflowAfterCompaction has a watcher to whom nothing happened for so long
// that its last look is compacted. When then more comes than its queue takes, it
// reads the history, of which it lacks nothing.
func TestOverflowAfterCompaction(t *testing.T) {
	state := mvcc.New()
	var view *mvcc.View
	apply := func(r mvcc.Request) {
		if res := state.Apply(r); res.Err != nil {
			t.Fatal(res.Err)
		}
		view = state.Freeze()
	}
	apply(&pb.PutRequest{Key: []byte("other")})
	h := NewHub(Options{View: func() *mvcc.View { return view }})
	w, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte("mine")})
	h.dispatch(view)
	if d, ok := w.poll(); ok {
		t.Fatalf("%+v", d)
	}
	for range 10 {
		apply(&pb.PutRequest{Key: []byte("other")})
	}
	h.dispatch(view)
	apply(&pb.CompactionRequest{Revision: view.Revision()})
	for range maxQueued + 1 {
		apply(&pb.PutRequest{Key: []byte("mine")})
	}
	h.dispatch(view)
	got := 0
	for d, ok := w.poll(); ok; d, ok = w.poll() {
		testenv.Require(t, d.Compacted <= 0, "it has to start over: %+v", d)
		got += len(d.Events)
	}
	testenv.Require(t, got == maxQueued+1, "%d events", got)
}

// TestProgressOfAWatchOfTheFuture: a client that goes on with a server that is behind the one it comes from is not sent
// back.
func TestProgressOfAWatchOfTheFuture(t *testing.T) {
	state := mvcc.New()
	var view *mvcc.View
	put := func(key string) {
		state.Apply(&pb.PutRequest{Key: []byte(key)})
		view = state.Freeze()
	}
	put("other")
	h := NewHub(Options{View: func() *mvcc.View { return view }})
	known := view.Revision() + 2
	w, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte("mine"), StartRevision: known + 1})
	for view.Revision() < known {
		h.dispatch(view)
		w.RequestProgress()
		if d, ok := w.poll(); ok {
			t.Fatalf("at revision %d a client that knows of %d is sent %+v", view.Revision(), known, d)
		}
		put("mine") // which the client has seen
	}
	for _, want := range []int64{known, known + 1} {
		h.dispatch(view)
		w.RequestProgress()
		if d, ok := w.poll(); !ok || len(d.Events) > 0 || d.Revision != want {
			t.Fatalf("at revision %d: %+v, %v", want, d, ok)
		}
		put("other")
	}
}

// TestQueueIsBoundedInBytes writes large values that are not received: few of them
// wait for the watcher, which reads the others from the history, so it misses
// nothing. Nor is more handed out at once.
func TestQueueIsBoundedInBytes(t *testing.T) {
	state := mvcc.New()
	view := state.Freeze()
	h := NewHub(Options{View: func() *mvcc.View { return view }})
	w, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
	h.dispatch(view)
	if d, ok := w.poll(); ok {
		t.Fatalf("%+v", d)
	}
	const each, versions = 300 << 10, 100
	value := make([]byte, each)
	for range versions {
		state.Apply(&pb.PutRequest{Key: []byte("a"), Value: value})
		view = state.Freeze()
		h.dispatch(view)
		if waiting := int64(len(w.queue)) * each; waiting > maxQueuedBytes {
			t.Fatalf("%d bytes wait", waiting)
		}
	}
	next := view.Revision() - versions + 1
	for d, ok := w.poll(); ok; d, ok = w.poll() {
		size := 0
		for _, e := range d.Events {
			testenv.Require(t, e.Kv.ModRevision == next, "revision %d came instead of %d", e.Kv.ModRevision, next)
			next++
			size += len(e.Kv.Value) + len(e.PrevKv.GetValue())
		}
		testenv.Require(t, size <= maxQueuedBytes+2*each, "%d bytes at once", size)
	}
	testenv.Require(t, next == view.Revision()+1, "it ends before revision %d of %d", next, view.Revision())
	testenv.Require(t, w.behind || w.bytes == 0, "%d bytes are said to wait in an empty queue", w.bytes)
}
