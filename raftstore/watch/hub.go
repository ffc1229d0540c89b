// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/pkg/v3/adt"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Options configure a hub. All fields are needed.
type Options struct {
	// View returns the newest state that this server has applied.
	View func() *mvcc.View
	// Clock and ProgressInterval say how often watches that asked for progress
	// notifications get one.
	Clock            clock.WithTicker
	ProgressInterval time.Duration
}

// Hub hands new versions to watchers. One goroutine, Run, compares each version
// with the ranges being watched, so that a version costs a search among ranges,
// and a watcher that it does not concern costs nothing.
type Hub struct {
	view     func() *mvcc.View
	clock    clock.WithTicker
	interval time.Duration
	wake     timers.Signal

	delivered atomic.Uint64 // events that watchers took, for metrics

	mu sync.Mutex
	// dispatched is the revision up to which queues have been filled.
	dispatched int64
	points     map[string]*watchGroup
	ranges     adt.IntervalTree
	// reported are the watchers that want progress notifications.
	reported map[*Watcher]struct{}
}

// watchGroup is the watchers of one key or one range.
type watchGroup struct{ members map[*Watcher]struct{} }

// NewHub returns a hub without watchers, which Run and RunProgress serve.
func NewHub(o Options) *Hub {
	return &Hub{
		view: o.View, clock: o.Clock, interval: o.ProgressInterval, wake: timers.NewSignal(),
		points: make(map[string]*watchGroup), ranges: adt.NewIntervalTree(), reported: make(map[*Watcher]struct{}),
	}
}

// NotifyPublished says that there is a new view. It never blocks.
func (h *Hub) NotifyPublished() {
	h.wake.Send()
}

// Run fills queues until ctx is done.
func (h *Hub) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
			h.dispatch(h.view())
		}
	}
}

// Stats says what the watchers are doing.
type Stats struct {
	Watches   int    // how many there are
	Behind    int    // of these, how many read the history
	Queued    int    // versions that wait in queues
	Delivered uint64 // events that watchers took so far
}

// Stats counts the watchers.
func (h *Hub) Stats() Stats {
	out := Stats{Delivered: h.delivered.Load()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eachWatcher(func(w *Watcher) {
		out.Watches++
		if w.behind {
			out.Behind++
		}
		out.Queued += len(w.queue)
	})
	return out
}

// dispatch hands each version since the last call to the watchers concerned.
func (h *Hub) dispatch(view *mvcc.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from, back := h.dispatched+1, view.Revision() < h.dispatched
	h.dispatched = view.Revision()
	if back {
		// A snapshot that was sent twice has put the state machine back for a
		// moment. What is queued comes again.
		h.eachWatcher(func(w *Watcher) { w.fallBehind(from) })
		return
	}
	if len(h.points) == 0 && h.ranges.Len() == 0 {
		return
	}
	history := view.History(from)
	if view.Compacted() > from {
		// Never seen in practice: compaction overtook the dispatcher. Each
		// watcher finds out for itself what it missed.
		h.eachWatcher(func(w *Watcher) { w.fallBehind(from) })
		return
	}
	for _, v := range history {
		h.enqueue(v)
	}
}

func (h *Hub) enqueue(v *mvcc.Version) {
	key := v.KV().Key
	if g := h.points[string(key)]; g != nil {
		g.enqueue(v)
	}
	if h.ranges.Len() > 0 {
		h.ranges.Visit(adt.NewBytesAffinePoint(key), func(iv *adt.IntervalValue) bool {
			iv.Val.(*watchGroup).enqueue(v)
			return true
		})
	}
}

func (g *watchGroup) enqueue(v *mvcc.Version) {
	for w := range g.members {
		w.enqueue(v)
	}
}

func (h *Hub) eachWatcher(fn func(*Watcher)) {
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

func (h *Hub) add(w *Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.group(w)
	if g == nil {
		g = &watchGroup{members: make(map[*Watcher]struct{})}
		if len(w.end) == 0 {
			h.points[string(w.key)] = g
		} else {
			h.ranges.Insert(interval(w.key, w.end), g)
		}
	}
	g.members[w] = struct{}{}
	if w.report {
		h.reported[w] = struct{}{}
	}
}

func (h *Hub) remove(w *Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.reported, w)
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

func (h *Hub) group(w *Watcher) *watchGroup {
	if len(w.end) == 0 {
		return h.points[string(w.key)]
	}
	if iv := h.ranges.Find(interval(w.key, w.end)); iv != nil {
		return iv.Val.(*watchGroup)
	}
	return nil
}
