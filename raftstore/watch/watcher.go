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
	// maxQueued and maxQueuedBytes bound the versions in a watcher's queue, with the previous values that it requested.
	// A slower watcher reads the history instead, which exists anyway. Bytes are bounded too, because queued versions
	// stay in memory after they were compacted, and no quota counts them.
	maxQueued      = 1024
	maxQueuedBytes = 4 << 20
	// scanChunk is how many versions a watcher that is behind examines before it delivers what it found. It also stops
	// when it has found maxQueuedBytes.
	scanChunk = 4096
)

// A Watcher follows one range from one revision. Its owner calls Next in a loop, and Close at the end. The hub fills
// its queue. It misses nothing and repeats nothing. Either all versions from position on are in the queue or will be
// added to it, or the watcher is behind and reads the history.
type Watcher struct {
	hub      *Hub
	key, end []byte
	prevKV   bool
	noPut    bool
	noDelete bool
	report   bool // requests progress notifications

	signal timers.Signal

	// Guarded by hub.mu.
	position int64 // next revision to deliver
	behind   bool
	queue    []queued
	bytes    int64 // bytes of the queue
	progress bool  // a report of the position was requested
}

// queued holds a version with its previous value, since compaction may set the version's prev to nil before it is
// delivered.
type queued struct {
	version *mvcc.Version
	prev    *mvccpb.KeyValue
}

// size returns about how many bytes q keeps in memory.
func (q queued) size() int64 {
	if q.prev == nil {
		return q.version.Size()
	}
	return q.version.Size() + int64(len(q.prev.Key)+len(q.prev.Value))
}

// A Delivery is the result of Next: events of whole revisions, in order. If there are no events, Revision is the
// revision up to which there are none.
type Delivery struct {
	Events   []*mvccpb.Event
	Revision int64
	// Compacted is set if the watcher cannot continue: it needs revisions that are older than this one, and they were
	// compacted.
	Compacted int64
}

// Watch starts a watcher at the revision that r requests. With a revision of 0 the watcher starts after the present
// revision. Watch returns the present revision: a client that loses its connection resumes from there.
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
	w.signal.Send() // makes Next read the history once
	h.add(w)
	return w, present
}

// Close ends the watcher. Next must not be called again.
func (w *Watcher) Close() { w.hub.remove(w) }

// RequestProgress makes Next report the position once everything up to the present revision is delivered. A watcher
// that begins after the present revision reports it when it is next woken and has reached that revision: by a later
// request, or by an event.
func (w *Watcher) RequestProgress() {
	w.hub.mu.Lock()
	w.progress = true
	w.hub.mu.Unlock()
	w.signal.Send()
}

// enqueue adds a version to the queue. The hub calls it under its lock.
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

// fallBehind makes the owner read the history. from is the hub's position: earlier versions that are not queued did not
// concern the watcher, and may be compacted.
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

// Next waits for a delivery. It returns ctx's error when ctx ends.
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

// poll returns a delivery if there is one at present.
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
		w.behind = w.progress // reads the newest view, not the dispatched one
	}
	behind := w.behind
	h.mu.Unlock()
	if !behind {
		return Delivery{}, false
	}
	return w.catchUp()
}

// catchUp reads the history from the position on. Only the owner calls it. While the watcher is behind, only the owner
// changes the position.
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
			w.behind = false // the hub queues everything from here on
		}
		// A watcher may begin after the present revision, if its client has learned of a later one from another server.
		// It must not report an earlier revision than its client knows.
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

// scan reads the next section of the history, always to the end of a revision. It returns the versions found, and the
// last revision that it has read.
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
