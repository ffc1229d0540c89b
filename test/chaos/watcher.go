// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/history"
)

// watcher collects all events under a prefix, from a revision on. It stays with one server, also across its restarts,
// or roams from one to the next; either way it resumes behind the last revision that it saw.
type watcher struct {
	name   string
	prefix string
	h      *recorder
	prev   bool // ask for previous values

	mu     sync.Mutex
	next   int64 // revision to resume from
	events []history.Event
	visits []visit
	err    error
}

// visit is one watch at one server.
type visit struct {
	Server string `json:"server"`
	Boot   int64  `json:"boot"`
	From   int64  `json:"from"`
	At     int64  `json:"at"`
	End    string `json:"end"`
}

func (w *watcher) sequence() history.Sequence {
	w.mu.Lock()
	defer w.mu.Unlock()
	return history.Sequence{Watcher: w.name, Events: slices.Clone(w.events), Visits: slices.Clone(w.visits)}
}

// position returns the last revision seen, and what made the watcher give up.
func (w *watcher) position() (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next - 1, w.err
}

// stay watches at one server until ctx ends; at others once it is removed.
func (w *watcher) stay(ctx context.Context, c *cluster, s *server) {
	for ctx.Err() == nil {
		if s.removed() {
			s = c.all()[0]
		}
		w.watch(ctx, s)
		pause(ctx, 100*time.Millisecond)
	}
}

// roam watches at one server after the other until ctx ends.
func (w *watcher) roam(ctx context.Context, c *cluster, r *rand.Rand) {
	for ctx.Err() == nil {
		all := c.all()
		s := all[r.IntN(len(all))]
		visit, cancel := context.WithTimeout(ctx, time.Duration(500+r.IntN(2500))*time.Millisecond)
		w.watch(visit, s)
		cancel()
	}
}

// watch takes events from a server until ctx or the watch ends.
func (w *watcher) watch(ctx context.Context, s *server) {
	etc, err := s.connect()
	if err != nil {
		w.fail(err)
		return
	}
	defer etc.Close()
	from, _ := w.position()
	v := visit{Server: s.name, Boot: s.boots.Load(), From: from + 1, At: w.h.now(), End: "left"}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.visits = append(w.visits, v)
	}()
	opts := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(from + 1)}
	if w.prev {
		opts = append(opts, clientv3.WithPrevKV())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-s.gone: // the client would wait for its server for good
			cancel()
		case <-ctx.Done():
		}
	}()
	for resp := range etc.Watch(clientv3.WithRequireLeader(ctx), w.prefix, opts...) {
		if resp.CompactRevision != 0 {
			w.fail(fmt.Errorf("%s at %s: from %d, but the server compacted to %d", w.name, s.name, from+1, resp.CompactRevision))
			return
		}
		if resp.Err() != nil {
			v.End = resp.Err().Error()
			return
		}
		w.take(resp)
	}
}

func (w *watcher) take(resp clientv3.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.h.now()
	for _, e := range resp.Events {
		event := history.Event{KV: history.KVOf(e.Kv), Delete: e.Type == clientv3.EventTypeDelete, At: at}
		if e.PrevKv != nil {
			kv := history.KVOf(e.PrevKv)
			event.Prev = &kv
		}
		w.events = append(w.events, event)
		w.next = max(w.next, event.Mod+1)
	}
}

func (w *watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// audit returns what a server's history still has under a prefix, from a revision up to another.
func audit(ctx context.Context, h *recorder, s *server, prefix string, from, to int64) (history.Sequence, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &watcher{name: "of " + s.name + "'s history", prefix: prefix, h: h, next: from}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { w.watch(ctx, s) })
	err := eventually(ctx, "the history of "+s.name, func(context.Context) error {
		at, err := w.position()
		if err == nil && at < to {
			err = fmt.Errorf("it is at revision %d of %d", at, to)
		}
		return err
	})
	return w.sequence(), err
}
