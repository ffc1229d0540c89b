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

// Options configure a hub. All fields are required.
type Options struct {
	// View returns the newest state that this server has applied.
	View func() *mvcc.View
	// Clock and ProgressInterval set how often a watch that requested progress notifications gets one.
	Clock            clock.WithTicker
	ProgressInterval time.Duration
}

// Hub passes new versions to watchers. One goroutine, Run, compares each version with the watched ranges. So a version
// costs one search among the ranges, and nothing for a watcher that it does not concern.
type Hub struct {
	view     func() *mvcc.View
	clock    clock.WithTicker
	interval time.Duration
	wake     timers.Signal

	delivered atomic.Uint64 // events that watchers received, for metrics

	mu sync.Mutex
	// dispatched is the revision up to which the queues were filled.
	dispatched int64
	points     map[string]*watchGroup
	ranges     adt.IntervalTree
	// reported are the watchers that requested progress notifications.
	reported map[*Watcher]struct{}
}

// watchGroup holds the watchers of one key or one range.
type watchGroup struct{ members map[*Watcher]struct{} }

// NewHub returns a hub without watchers. Run and RunProgress must be run for it.
func NewHub(o Options) *Hub {
	return &Hub{
		view: o.View, clock: o.Clock, interval: o.ProgressInterval, wake: timers.NewSignal(),
		points: make(map[string]*watchGroup), ranges: adt.NewIntervalTree(), reported: make(map[*Watcher]struct{}),
	}
}

// NotifyPublished tells Run that there is a new view. It never blocks.
func (h *Hub) NotifyPublished() {
	h.wake.Send()
}

// Run fills the watchers' queues until ctx is done.
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

// Stats are the numbers of watchers and events.
type Stats struct {
	Watches   int    // number of watchers
	Behind    int    // number of them that read the history
	Queued    int    // number of versions in queues
	Delivered uint64 // number of events that watchers have received
}

// Stats counts the watches and their queued versions.
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

// dispatch adds each version since the last call to the queues of the watchers concerned.
func (h *Hub) dispatch(view *mvcc.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from, back := h.dispatched+1, view.Revision() < h.dispatched
	h.dispatched = view.Revision()
	if back {
		// A snapshot has set the state machine back, which package appendfilter should prevent. The queued versions
		// will be published again.
		h.eachWatcher(func(w *Watcher) { w.fallBehind(from) })
		return
	}
	if len(h.points) == 0 && h.ranges.Len() == 0 {
		return
	}
	history := view.History(from)
	if view.Compacted() > from {
		// Never seen in practice: compaction has overtaken the hub. Each watcher finds out what it missed from the
		// history.
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
	everything := adt.NewBytesAffineInterval([]byte{0}, nil) // an empty begin would mean infinity, as an empty end does
	h.ranges.Visit(everything, func(iv *adt.IntervalValue) bool {
		for w := range iv.Val.(*watchGroup).members {
			fn(w)
		}
		return true
	})
}

// interval returns a range for the interval tree, in which an empty end means infinity.
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
