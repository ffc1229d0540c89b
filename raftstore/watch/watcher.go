// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// maxQueued and maxQueuedBytes bound the versions waiting for one watcher,
	// with the previous values that it wants. One that is slower reads the
	// history instead, which exists anyway. Bytes, because what waits in a queue
	// stays in memory after it was compacted, and no quota counts it.
	maxQueued      = 1024
	maxQueuedBytes = 4 << 20
	// scanChunk is how many versions a watcher that is behind looks at before
	// it delivers what it found; it also stops at maxQueuedBytes found.
	scanChunk = 4096
)

// A Watcher follows one range from one revision. Its owner calls Next in a
// loop, and Close at the end; the hub fills its queue. It misses nothing and
// repeats nothing: either everything from position on is in the queue or will be
// offered, or it is behind and reads the history.
type Watcher struct {
	hub      *Hub
	key, end []byte
	prevKV   bool
	noPut    bool
	noDelete bool
	report   bool // progress, from time to time

	signal timers.Signal

	// Guarded by hub.mu.
	position int64 // next revision to deliver
	behind   bool
	queue    []queued
	bytes    int64 // of the queue
	progress bool  // a report of the position was asked for
}

// queued keeps the previous value beside a version, since compaction may cut
// the version from it before it is delivered.
type queued struct {
	version *mvcc.Version
	prev    *mvccpb.KeyValue
}

// size is about how many bytes it keeps in memory.
func (q queued) size() int64 {
	if q.prev == nil {
		return q.version.Size()
	}
	return q.version.Size() + int64(len(q.prev.Key)+len(q.prev.Value))
}

// A Delivery is what Next returns: events of whole revisions, in order; or, if
// there are none, the revision up to which there are none.
type Delivery struct {
	Events   []*mvccpb.Event
	Revision int64
	// Compacted is set if the watcher cannot go on: it needs revisions older
	// than this one, which are gone.
	Compacted int64
}

// Watch starts a watcher at the revision that r asks for. With a revision of 0
// it starts after the present one, which Watch returns: a client that loses its
// connection goes on from there.
func (h *Hub) Watch(r *pb.WatchCreateRequest) (w *Watcher, present int64) {
	present = h.view().Revision()
	w = &Watcher{
		hub: h, key: r.Key, end: r.RangeEnd, prevKV: r.PrevKv, report: r.ProgressNotify,
		signal: timers.NewSignal(), position: r.StartRevision, behind: true,
	}
	if w.position == 0 {
		w.position = present + 1
	}
	for _, f := range r.Filters {
		w.noPut = w.noPut || f == pb.WatchCreateRequest_NOPUT
		w.noDelete = w.noDelete || f == pb.WatchCreateRequest_NODELETE
	}
	w.signal.Send() // to look at the history once
	h.add(w)
	return w, present
}

// Close ends the watcher. Next must not be called again.
func (w *Watcher) Close() { w.hub.remove(w) }

// RequestProgress makes Next report the position once everything up to the
// present revision is delivered. One that begins after the present revision
// reports it with a later request, or when it is called for an event.
func (w *Watcher) RequestProgress() {
	w.hub.mu.Lock()
	w.progress = true
	w.hub.mu.Unlock()
	w.signal.Send()
}

// enqueue is called by the hub, under its lock.
func (w *Watcher) enqueue(v *mvcc.Version) {
	if w.behind || v.Revision() < w.position {
		return
	}
	if w.filtered(v) {
		return
	}
	q := w.toQueued(v)
	size := q.size()
	if n := len(w.queue); n >= maxQueued || n > 0 && w.bytes+size > maxQueuedBytes {
		w.fallBehind(0)
		return
	}
	w.queue, w.bytes = append(w.queue, q), w.bytes+size
	w.signal.Send()
}

func (w *Watcher) toQueued(v *mvcc.Version) queued {
	q := queued{version: v}
	if w.prevKV {
		q.prev = v.Before()
	}
	return q
}

func (w *Watcher) filtered(v *mvcc.Version) bool {
	return w.noPut && !v.Deleted() || w.noDelete && v.Deleted()
}

// fallBehind lets the owner read the history. from is where the hub is: what was
// before that and not queued did not concern the watcher, and may be compacted.
func (w *Watcher) fallBehind(from int64) {
	if !w.behind {
		if len(w.queue) > 0 {
			from = w.queue[0].version.Revision()
		}
		w.position = max(w.position, from)
	}
	w.behind, w.queue, w.bytes = true, nil, 0
	w.signal.Send()
}

// Next waits for something to deliver. It returns ctx's error when that ends.
func (w *Watcher) Next(ctx context.Context) (Delivery, error) {
	for {
		if d, ok := w.poll(); ok {
			w.hub.delivered.Add(uint64(len(d.Events)))
			return d, nil
		}
		select {
		case <-ctx.Done():
			return Delivery{}, ctx.Err()
		case <-w.signal:
		}
	}
}

// poll returns what can be delivered at once.
func (w *Watcher) poll() (Delivery, bool) {
	h := w.hub
	h.mu.Lock()
	if len(w.queue) > 0 {
		q := w.queue
		w.queue, w.bytes = nil, 0
		w.position = q[len(q)-1].version.Revision() + 1
		h.mu.Unlock()
		return Delivery{Events: events(q), Revision: w.position - 1}, true
	}
	if !w.behind {
		w.position = max(w.position, h.dispatched+1)
		w.behind = w.progress // look at the newest view, not the dispatched one
	}
	behind := w.behind
	h.mu.Unlock()
	if !behind {
		return Delivery{}, false
	}
	return w.catchUp()
}

// catchUp reads the history from the position on. Only the owner calls it, and
// while behind only the owner moves the position.
func (w *Watcher) catchUp() (Delivery, bool) {
	for {
		view := w.hub.view()
		found, reached := w.scan(view)
		if c := view.Compacted(); c > w.position {
			return Delivery{Compacted: c}, true
		}
		d := Delivery{Events: events(found), Revision: reached}
		w.hub.mu.Lock()
		w.position = max(w.position, reached+1)
		if w.position > w.hub.dispatched {
			w.behind = false // the hub enqueues everything from here on
		}
		// One that begins later than now, since its client has heard of later from another server, is not sent less
		// than it knows.
		report := w.progress && !w.behind && len(found) == 0 && w.position-1 <= view.Revision()
		if report {
			w.progress = false
			d.Revision = w.position - 1
		}
		behind := w.behind
		w.hub.mu.Unlock()
		if len(found) > 0 {
			if behind {
				w.signal.Send()
			}
			return d, true
		}
		if report {
			return d, true
		}
		if !behind {
			return Delivery{}, false
		}
	}
}

// scan looks through the next part of the history, always to the end of a
// revision, and says how far it got.
func (w *Watcher) scan(view *mvcc.View) ([]queued, int64) {
	var found []queued
	var size int64
	history := view.History(w.position)
	for i, v := range history {
		if (i >= scanChunk || size >= maxQueuedBytes) && v.Revision() != history[i-1].Revision() {
			return found, history[i-1].Revision()
		}
		if !mvcc.InRange(v.KV().Key, w.key, w.end) || w.filtered(v) {
			continue
		}
		q := w.toQueued(v)
		found, size = append(found, q), size+q.size()
	}
	return found, view.Revision()
}

func events(q []queued) []*mvccpb.Event {
	slab := make([]mvccpb.Event, len(q))
	out := make([]*mvccpb.Event, len(q))
	for i := range q {
		e := &slab[i]
		e.Kv, e.PrevKv = q[i].version.KV(), q[i].prev
		if q[i].version.Deleted() {
			e.Type = mvccpb.Event_DELETE
		}
		out[i] = e
	}
	return out
}
