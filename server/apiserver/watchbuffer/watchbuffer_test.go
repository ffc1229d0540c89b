// SPDX-License-Identifier: Apache-2.0

package watchbuffer_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/coracle-k8s/coracle/server/apiserver/watchbuffer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// version is one of an object as the store has it.
type version struct {
	value   []byte
	dropped bool // by the watch's selector
}

// watchChan does what upstream's does (k8s.io/apiserver/pkg/storage/etcd3), and the store's client before it.
type watchChan struct {
	bound    watchbuffer.Bound
	out      <-chan watch.Event
	mu       sync.Mutex
	raw      int // bytes that were passed on and have not come to be decoded
	ahead    int // bytes that are decoded, or about to be, for a reader that has not taken them
	most     int // that ahead has been at any time
	mostRaw  int
	decoding sync.WaitGroup
	all      sync.WaitGroup
}

// begin starts a watch of versions; with those of the beginning, which are passed on without asking, and so many
// decoded at a time.
func begin(ctx context.Context, beginning, versions []version, atATime int) *watchChan {
	w := &watchChan{}
	raw := make(chan version, 100)
	decoded := make(chan watch.Event, 100)
	w.all.Go(func() {
		defer close(raw)
		for _, v := range beginning {
			select {
			case raw <- v:
			case <-ctx.Done():
				return
			}
		}
		passed := 0
		for _, v := range versions {
			if passed += len(v.value); passed >= watchbuffer.Limit {
				w.bound.WaitDecoded(ctx, v.value)
				passed = 0
			}
			w.add(&w.raw, &w.mostRaw, len(v.value))
			select {
			case raw <- v:
			case <-ctx.Done():
				return
			}
		}
	})
	slots := make(chan chan watch.Event, max(atATime-1, 0))
	ofVersions := len(beginning)
	w.all.Go(func() {
		defer close(slots)
		defer w.decoding.Wait()
		i := 0
		for v := range raw {
			slot := make(chan watch.Event, 1)
			select {
			case slots <- slot:
			case <-ctx.Done():
				return
			}
			later := i >= ofVersions
			i++
			decode := func() {
				defer close(slot)
				if later {
					w.add(&w.raw, &w.mostRaw, -len(v.value))
				}
				w.bound.Decode(ctx, v.value)
				if v.dropped {
					return
				}
				w.add(&w.ahead, &w.most, len(v.value))
				slot <- watch.Event{Object: &corev1.ConfigMap{BinaryData: map[string][]byte{"v": v.value}}}
			}
			if atATime == 1 {
				decode()
			} else {
				w.decoding.Go(decode)
			}
		}
	})
	w.all.Go(func() {
		defer close(decoded)
		for slot := range slots {
			e, ok := <-slot
			if !ok {
				continue
			}
			select {
			case decoded <- e:
			case <-ctx.Done():
				return
			}
		}
	})
	w.out = w.bound.Follow(ctx, decoded)
	return w
}

func (w *watchChan) add(to, most *int, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*to += n
	*most = max(*most, *to)
}

func (w *watchChan) take() ([]byte, bool) {
	e, ok := <-w.out
	if !ok {
		return nil, false
	}
	v := e.Object.(*corev1.ConfigMap).BinaryData["v"]
	w.add(&w.ahead, &w.most, -len(v))
	return v, true
}

// bytesOf is where versions' values lie, each from its own byte on: a bound knows them by that, and by how many they
// are.
var bytesOf = make([]byte, 2<<20)

func versions(from, n, size int) []version {
	out := make([]version, n)
	for i := range out {
		out[i].value = bytesOf[from+i : from+i+size]
	}
	return out
}

// TestUnreadStreamIsClosed: what is decoded for a watch that is not read is one object, or Limit bytes, however many
// there are.
func TestUnreadStreamIsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		beginning, versions []version
		most, mostRaw       int
	}{
		"large":               {nil, versions(0, 300, 300<<10), 300 << 10, 600 << 10},
		"large, beginning":    {versions(0, 300, 300<<10), nil, 300 << 10, 0},
		"middle":              {nil, versions(0, 300, 30<<10), watchbuffer.Limit, 2*watchbuffer.Limit + 30<<10},
		"small":               {nil, versions(0, 300, 1<<10), 101 << 10, 102 << 10},
		"none at all":         {nil, versions(0, 300, 0), 0, 0},
		"large after small":   {nil, append(versions(0, 20, 1<<10), versions(20, 20, 300<<10)...), watchbuffer.Limit, 600 << 10},
		"small after large":   {nil, append(versions(0, 1, 300<<10), versions(1, 200, 1<<10)...), 300 << 10, 2*watchbuffer.Limit + 300<<10},
		"small after initial": {versions(0, 200, 300<<10), versions(200, 300, 1<<10), 300 << 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				w := begin(ctx, c.beginning, c.versions, 1)
				synctest.Wait()
				largest := 0
				for _, v := range slices.Concat(c.beginning, c.versions) {
					largest = max(largest, len(v.value))
				}
				if w.most > c.most+largest || w.mostRaw > c.mostRaw { // one may be on its way to the reader that the bound does not know of yet
					t.Errorf("%d bytes were decoded and %d lay before that; at most %d and %d should", w.most, w.mostRaw, c.most+largest, c.mostRaw)
				}
				cancel()
				w.all.Wait()
			})
		})
	}
}

// TestReaderStallsAndWakes: whatever the sizes of objects, the selector, and when the reader reads, it gets everything
// in order, and nothing stands still for longer than it does.
func TestReaderStallsAndWakes(t *testing.T) {
	first := testenv.Seed(t)
	for i := range uint64(20) {
		t.Run("", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { stallAndWake(t, first+i) })
		})
	}
}

func stallAndWake(t *testing.T, seed uint64) {
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	sizes := []int{0, 1, 100, 3 << 10, 30 << 10, 100 << 10, 300 << 10, 1 << 20}[r.IntN(3):]
	next := 0
	random := func(n int) (out []version) {
		for range n {
			size := sizes[r.IntN(len(sizes))]
			if size > 2 {
				size -= r.IntN(size / 2)
			}
			out = append(out, version{bytesOf[next : next+size], r.IntN(4) == 0})
			next++
		}
		return out
	}
	beginning, versions := random(r.IntN(300)), random(r.IntN(300))
	atATime := []int{1, 1, 10}[r.IntN(3)]
	var want [][]byte
	largest := 0
	for _, v := range slices.Concat(beginning, versions) {
		largest = max(largest, len(v.value))
		if !v.dropped {
			want = append(want, v.value)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := begin(ctx, beginning, versions, atATime)
	until := len(want)
	if r.IntN(4) == 0 {
		until = r.IntN(until + 1) // it stops in the middle
	}
	for i := range until {
		if r.IntN(5) == 0 {
			time.Sleep(time.Second) // of the bubble's time: all others have come as far as they come
		}
		got, ok := w.take()
		if !ok || len(got) != len(want[i]) || len(got) > 0 && &got[0] != &want[i][0] {
			t.Fatalf("event %d: %d bytes, %v; want %d", i, len(got), ok, len(want[i]))
		}
	}
	if until == len(want) {
		if _, ok := w.take(); ok {
			t.Error("there is one more")
		}
	}
	w.mu.Lock()
	most, mostRaw := w.most, w.mostRaw // before it ends, when nothing waits any more
	w.mu.Unlock()
	cancel()
	w.all.Wait()
	// One more was received, and not yet noted, than the bound knows of; those that are decoded at the same time do not
	// know of one another.
	if bound := max(watchbuffer.Limit, largest) + (1+atATime)*largest; most > bound {
		t.Errorf("%d bytes were decoded ahead, of at most %d", most, bound)
	}
	if bound := 2*watchbuffer.Limit + (1+atATime)*largest; mostRaw > bound {
		t.Errorf("%d bytes lay before what decodes, of at most %d", mostRaw, bound)
	}
}
