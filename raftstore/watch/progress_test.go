// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestProgressBesideEvents: a watch that has events is sent progress too, since its reader may pass none of
// them on. One that did not want it is not.
func TestProgressBesideEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := mvcc.New()
		view := state.Freeze()
		h := NewHub(Options{View: func() *mvcc.View { return view }, Clock: clock.RealClock{}, ProgressInterval: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			h.RunProgress(ctx)
		}()
		notified, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte("k"), ProgressNotify: true})
		other, _ := h.Watch(&pb.WatchCreateRequest{Key: []byte("k")})
		for range 3 {
			time.Sleep(30 * time.Second) // fake time
			state.Apply(&pb.PutRequest{Key: []byte("k")})
			view = state.Freeze()
			h.dispatch(view)
			time.Sleep(30 * time.Second) // fake time
			synctest.Wait()
			for _, w := range []*Watcher{notified, other} {
				if d, ok := w.poll(); !ok || len(d.Events) != 1 {
					t.Fatalf("instead of an event: %+v %v", d, ok)
				}
			}
			if d, ok := notified.poll(); !ok || len(d.Events) > 0 || d.Revision != view.Revision() {
				t.Fatalf("at revision %d it is sent %+v, %v", view.Revision(), d, ok)
			}
			for _, w := range []*Watcher{notified, other} {
				if d, ok := w.poll(); ok {
					t.Fatalf("after that %+v", d)
				}
			}
		}
		cancel()
		<-ended
	})
}

// TestProgressIsNeverAhead has watches of keys and ranges, some of which begin in the past, some in the future, and
// which read at their own pace, while random things happen to the store: writes, compactions, and snapshots that put it
// back. Whatever revision a watch is sent, it has been sent all events until there, each once, and it is sent
// no smaller one later.
func TestProgressIsNeverAhead(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 10 {
		progressOfRandomWatches(t, r)
	}
}

// notifiedWatch is a watch and the events that it has received.
type notifiedWatch struct {
	*Watcher
	key, end string
	next     int64 // the first revision of which it has not heard
	progress int64
	over     bool
}

func (w *notifiedWatch) wants(key string) bool {
	return key == w.key || w.end != "" && key >= w.key && (key < w.end || w.end == "\x00")
}

func progressOfRandomWatches(t *testing.T, r *rand.Rand) {
	keys := []string{"a", "ab", "b", "c"}
	state := mvcc.New()
	state.Apply(&pb.PutRequest{Key: []byte("a")})
	view := state.Freeze()
	h := NewHub(Options{View: func() *mvcc.View { return view }})
	written := map[int64]string{view.Revision(): "a"} // the key of each revision
	last, compacted := view.Revision(), int64(0)
	var watches []*notifiedWatch
	for range 300 {
		switch r.IntN(12) {
		case 0, 1, 2: // a write, or as many as no queue takes
			n := 1
			if r.IntN(20) == 0 {
				n = maxQueued + 10
			}
			for range n {
				key := keys[r.IntN(len(keys))]
				state.Apply(&pb.PutRequest{Key: []byte(key)})
				view = state.Freeze()
				last = view.Revision()
				written[last] = key
			}
		case 3, 4:
			h.dispatch(view)
		case 5:
			if r.IntN(4) == 0 && last > compacted+1 {
				compacted += 1 + r.Int64N(last-compacted)
				if res := state.Apply(&pb.CompactionRequest{Revision: compacted}); res.Err != nil {
					t.Fatal(res.Err)
				}
				view = state.Freeze()
			}
		case 6:
			w := &notifiedWatch{key: keys[r.IntN(len(keys))], end: []string{"", "", "c", "\x00"}[r.IntN(4)]}
			if w.end == "c" && w.key == "c" {
				w.end = ""
			}
			w.next = max(1, last-3) + r.Int64N(8)
			w.Watcher, _ = h.Watch(&pb.WatchCreateRequest{Key: []byte(w.key), RangeEnd: []byte(w.end), StartRevision: w.next})
			w.progress = w.next - 1
			watches = append(watches, w)
		case 7, 8:
			for _, w := range watches {
				if r.IntN(2) == 0 && !w.over {
					w.RequestProgress()
				}
			}
		case 9: // a view from before, for a moment
			if r.IntN(4) == 0 {
				now := view
				state.Apply(&pb.PutRequest{Key: []byte("c")})
				view = state.Freeze()
				last = view.Revision()
				written[last] = "c"
				h.dispatch(view)
				after := view
				view = now
				h.dispatch(view) // until then a watch that is behind looks again and again
				readSome(t, r, watches, written)
				view = after
			}
		default:
			readSome(t, r, watches, written)
		}
	}
	h.dispatch(view)
	for _, w := range watches {
		if w.over {
			continue
		}
		w.RequestProgress()
		for w.hear(t, written) {
		}
		if !w.over && w.progress < min(last, max(last, w.next-1)) {
			t.Fatalf("a watch of %q to %q was sent progress %d at last, the store is at %d", w.key, w.end, w.progress, last)
		}
	}
}

func readSome(t *testing.T, r *rand.Rand, watches []*notifiedWatch, written map[int64]string) {
	for _, w := range watches {
		if r.IntN(2) == 0 {
			w.hear(t, written)
		}
	}
}

// hear takes one delivery, if there is one.
func (w *notifiedWatch) hear(t *testing.T, written map[int64]string) bool {
	if w.over {
		return false
	}
	d, ok := w.poll()
	if !ok {
		return false
	}
	if d.Compacted > 0 {
		testenv.Require(t, d.Compacted > w.next, "a watch that needs revision %d ends, because all before %d is gone", w.next, d.Compacted)
		w.over = true
		w.Close()
		return false
	}
	var got, want []int64
	for _, e := range d.Events {
		got = append(got, e.Kv.ModRevision)
	}
	for rev := w.next; rev <= d.Revision; rev++ {
		if w.wants(written[rev]) && written[rev] != "" {
			want = append(want, rev)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("a watch of %q to %q that has all until revision %d is sent %v until %d, and not %v", w.key, w.end, w.next-1, got, d.Revision, want)
	}
	testenv.Require(t, d.Revision >= w.progress, "it is sent progress %d after %d", d.Revision, w.progress)
	w.next, w.progress = max(w.next, d.Revision+1), d.Revision
	return true
}
