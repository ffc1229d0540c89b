// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/pkg/v3/adt"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// hub tells watchers of new versions. One goroutine, run, compares each version
// with the ranges being watched, so that a version costs a search among ranges
// and a watcher that it does not concern costs nothing.
type hub struct {
	view func() *mvcc.View
	wake chan struct{} // capacity 1: one pending wake-up stands for any number

	delivered atomic.Uint64 // events that watchers took, for metrics

	mu sync.Mutex
	// dispatched is the revision up to which queues have been filled.
	dispatched int64
	points     map[string]*watchGroup
	ranges     adt.IntervalTree
}

// watchGroup is the watchers of one key or one range.
type watchGroup struct{ members map[*watcher]struct{} }

func newHub(view func() *mvcc.View) *hub {
	return &hub{
		view: view, wake: make(chan struct{}, 1),
		points: make(map[string]*watchGroup), ranges: adt.NewIntervalTree(),
	}
}

// notify says that there is a new view. It never blocks.
func (h *hub) notify() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run fills queues until ctx is done.
func (h *hub) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
			h.dispatch(h.view())
		}
	}
}

// dispatch hands each version since the last call to the watchers concerned.
func (h *hub) dispatch(view *mvcc.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from, back := h.dispatched+1, view.Revision() < h.dispatched
	h.dispatched = view.Revision()
	if back {
		// A snapshot that was sent twice has put the state machine back for a
		// moment. What is queued comes again.
		h.eachWatcher(func(w *watcher) { w.fallBehind(from) })
		return
	}
	if len(h.points) == 0 && h.ranges.Len() == 0 {
		return
	}
	history := view.History(from)
	if view.Compacted() > from {
		// Never seen in practice: compaction overtook the dispatcher. Each
		// watcher finds out for itself what it missed.
		h.eachWatcher(func(w *watcher) { w.fallBehind(from) })
		return
	}
	for _, v := range history {
		h.offer(v)
	}
}

func (h *hub) offer(v *mvcc.Version) {
	key := v.KV().Key
	if g := h.points[string(key)]; g != nil {
		g.offer(v)
	}
	if h.ranges.Len() > 0 {
		h.ranges.Visit(adt.NewBytesAffinePoint(key), func(iv *adt.IntervalValue) bool {
			iv.Val.(*watchGroup).offer(v)
			return true
		})
	}
}

func (g *watchGroup) offer(v *mvcc.Version) {
	for w := range g.members {
		w.offer(v)
	}
}

func (h *hub) eachWatcher(fn func(*watcher)) {
	for _, g := range h.points {
		for w := range g.members {
			fn(w)
		}
	}
	everything := adt.NewBytesAffineInterval([]byte{0}, nil) // no bytes at all would be infinity, also as a beginning
	h.ranges.Visit(everything, func(iv *adt.IntervalValue) bool {
		for w := range iv.Val.(*watchGroup).members {
			fn(w)
		}
		return true
	})
}

// interval is the range as the interval tree has it, where no end is infinity.
func interval(key, end []byte) adt.Interval {
	if len(end) == 1 && end[0] == 0 {
		end = nil
	}
	return adt.NewBytesAffineInterval(key, end)
}

func (h *hub) add(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.group(w)
	if g == nil {
		g = &watchGroup{members: make(map[*watcher]struct{})}
		if len(w.end) == 0 {
			h.points[string(w.key)] = g
		} else {
			h.ranges.Insert(interval(w.key, w.end), g)
		}
	}
	g.members[w] = struct{}{}
}

func (h *hub) remove(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.group(w)
	if g == nil {
		return
	}
	delete(g.members, w)
	if len(g.members) > 0 {
		return
	}
	if len(w.end) == 0 {
		delete(h.points, string(w.key))
	} else {
		h.ranges.Delete(interval(w.key, w.end))
	}
}

func (h *hub) group(w *watcher) *watchGroup {
	if len(w.end) == 0 {
		return h.points[string(w.key)]
	}
	if iv := h.ranges.Find(interval(w.key, w.end)); iv != nil {
		return iv.Val.(*watchGroup)
	}
	return nil
}
