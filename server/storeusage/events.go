// SPDX-License-Identifier: Apache-2.0

package storeusage

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// shortenFrom and limitFrom are shares of the quota. When events take the first, new ones live for shorter. When
	// they take the second, namespaces that have more of it than their share get no more.
	shortenFrom, limitFrom = 8, 4
	// shortTTL is how long those new events live.
	shortTTL = 10 * time.Minute
	// recountAfter is the least time between two counts of all events. recountShare bounds the time that counting
	// takes: a count is not repeated before that many times its duration.
	recountAfter, recountShare = time.Second, 50
	eventsPrefix               = "/registry/events/"
)

// Events keeps events from using up the store's quota. They are counted only when new ones are written, and only while
// the store has as much as shortenFrom says.
type Events struct {
	view    func() *mvcc.View
	quota   func() int64 // bytes
	now     func() time.Time
	refused prometheus.Counter

	mu         sync.Mutex
	nextCount  time.Time // when the events may be counted again
	total      int64     // bytes of all events
	namespaces map[string]int64
}

// NewEvents returns the limits for the events in a store.
func NewEvents(view func() *mvcc.View, quota func() int64, now func() time.Time) *Events {
	return &Events{
		view: view, quota: quota, now: now,
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coracle_store_events_refused_total",
			Help: "How many new events were refused here because events take a quarter of the store's quota, and their namespace more than its share.",
		}),
	}
}

// Collector returns the metric of the refused events.
func (e *Events) Collector() prometheus.Collector { return e.refused }

// TTL returns how long an event may live that would live for usual. refused says that a new event is refused in its
// namespace. Each namespace that has events may use an equal share of the quarter of the quota.
func (e *Events) TTL(namespace string, usual time.Duration) (ttl time.Duration, refused bool) {
	view, quota := e.view(), e.quota()
	if view.Stats().LiveBytes < quota/shortenFrom {
		return usual, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if began := e.now(); !began.Before(e.nextCount) {
		e.count(view)
		e.nextCount = began.Add(max(recountAfter, recountShare*e.now().Sub(began)))
	}
	if ttl = usual; e.total >= quota/shortenFrom {
		ttl = min(usual, shortTTL)
	}
	return ttl, e.total >= quota/limitFrom && e.namespaces[namespace] > quota/limitFrom/int64(max(1, len(e.namespaces)))
}

// Refused counts a refused event.
func (e *Events) Refused() { e.refused.Inc() }

func (e *Events) count(view *mvcc.View) {
	e.total, e.namespaces = 0, map[string]int64{}
	end := []byte(eventsPrefix)
	end[len(end)-1]++
	view.Walk([]byte(eventsPrefix), end, view.Revision(), func(v *mvcc.Version) bool {
		_, namespace := kindOf(string(v.KV().Key))
		e.total += v.Size()
		e.namespaces[namespace] += v.Size()
		return true
	})
}
