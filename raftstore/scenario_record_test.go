// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/history"
)

// record is what clients and watchers saw; check judges it.
type record struct {
	clock atomic.Int64 // orders calls and returns

	mu      sync.Mutex
	ops     []*operation
	watched []*watched
	// leapt is the newest revision that servers had before a recovery: a watch that had everything up to there missed
	// nothing by the leap.
	leapt atomic.Int64
}

func newRecord() *record { return &record{} }

// operation is a request and its answer.
type operation struct {
	history.Op
	err error
}

func (h *record) begin(node string, o history.Op) *operation {
	out := &operation{Op: o}
	out.Server, out.Call = node, h.clock.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, out)
	return out
}

// end notes an operation's answer.
func (h *record) end(o *operation, header *pb.ResponseHeader, found []*mvccpb.KeyValue, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.Return, o.KVs, o.err = h.clock.Add(1), history.KVsOf(found), err
	switch {
	case err == nil:
		o.Outcome, o.Rev = history.OutcomeOK, header.Revision
		return
	case errors.Is(err, mvcc.ErrFenced):
		o.Outcome = history.OutcomeFailed
	default:
		o.Outcome = history.OutcomeMaybe
	}
	o.Err = err.Error()
}

// all returns what was done and what was watched so far. Operations must have ended.
func (h *record) all() ([]*history.Op, []*watched) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ops []*history.Op
	for _, o := range h.ops {
		ops = append(ops, &o.Op)
	}
	return ops, slices.Clone(h.watched)
}

// acked counts the writes that were acknowledged so far.
func (h *record) acked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, o := range h.ops {
		if o.Wrote() {
			n++
		}
	}
	return n
}

// The operations that clients do.

func (h *record) put(ctx context.Context, node string, c clientv3.KV, key, value string) *operation {
	return h.write(ctx, node, c, history.Op{Kind: history.KindPut, Key: key}, value)
}

// fenced writes as the leader of a term.
func (h *record) fenced(ctx context.Context, node string, c clientv3.KV, key, value string, term uint64) *operation {
	return h.write(WithTerm(ctx, term), node, c, history.Op{Kind: history.KindPut, Key: key, Term: term}, value)
}

func (h *record) cas(ctx context.Context, node string, c clientv3.KV, key, value string, was int64) *operation {
	return h.write(ctx, node, c, history.Op{Kind: history.KindCAS, Key: key, Expect: was}, value)
}

func (h *record) remove(ctx context.Context, node string, c clientv3.KV, key string, was int64) *operation {
	return h.write(ctx, node, c, history.Op{Kind: history.KindCAS, Key: key, Expect: was, Deletes: []string{key}}, "")
}

func (h *record) write(ctx context.Context, node string, c clientv3.KV, op history.Op, value string) *operation {
	change := clientv3.OpDelete(op.Key)
	if op.Deletes == nil {
		op.Puts = []history.KV{{Key: op.Key, Value: value}}
		change = clientv3.OpPut(op.Key, value)
	}
	var cmps []clientv3.Cmp
	if op.Kind == history.KindCAS {
		cmps = []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(op.Key), "=", op.Expect)}
	}
	o := h.begin(node, op)
	resp, err := c.Txn(ctx).If(cmps...).Then(change).Else(clientv3.OpGet(op.Key)).Commit()
	if err != nil {
		h.end(o, nil, nil, err)
		return o
	}
	if o.Succeeded = resp.Succeeded; o.Succeeded {
		o.Deleted = resp.Responses[0].GetResponseDeleteRange().GetDeleted()
	}
	h.end(o, resp.Header, resp.Responses[0].GetResponseRange().GetKvs(), nil)
	return o
}

func (h *record) get(ctx context.Context, node string, c clientv3.KV, key string) *operation {
	return h.read(ctx, c, h.begin(node, history.Op{Kind: history.KindGet, Key: key}))
}

// list reads all keys with a prefix.
func (h *record) list(ctx context.Context, node string, c clientv3.KV, prefix string) *operation {
	return h.read(ctx, c, h.begin(node, history.Op{Kind: history.KindList, Prefix: prefix}), clientv3.WithPrefix())
}

// peek reads what a server has, be it old.
func (h *record) peek(ctx context.Context, node string, c clientv3.KV, key string) *operation {
	return h.read(ctx, c, h.begin(node, history.Op{Kind: history.KindSerializable, Key: key}), clientv3.WithSerializable())
}

func (h *record) read(ctx context.Context, c clientv3.KV, o *operation, opts ...clientv3.OpOption) *operation {
	resp, err := c.Get(ctx, o.Key+o.Prefix, opts...)
	if err != nil {
		h.end(o, nil, nil, err)
	} else {
		h.end(o, resp.Header, resp.Kvs, nil)
	}
	return o
}

// watched is what a watch of everything on one server delivered, over all its
// runs.
type watched struct {
	node   string
	ended  chan struct{}
	mu     sync.Mutex
	events []history.Event
	// next is the revision with which the following run begins.
	next      int64
	compacted bool // it missed something, lawfully
	err       error
}

// watch follows everything that a store says from where its server's earlier
// run ended.
func (c *cluster) watch(ctx context.Context, node string, s *Store) *watched {
	w := &watched{node: node, next: 1, ended: make(chan struct{})}
	c.record.mu.Lock()
	for _, earlier := range c.record.watched {
		if earlier.node == node {
			w.next = earlier.at()
		}
	}
	c.record.watched = append(c.record.watched, w)
	c.record.mu.Unlock()
	c.tasks.Go(func() {
		defer close(w.ended)
		for ctx.Err() == nil && w.follow(ctx, c.record, s) {
		}
	})
	return w
}

// follow returns true if it is to be called again.
func (w *watched) follow(ctx context.Context, c *record, s *Store) bool {
	for resp := range s.Client().Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(w.next)) {
		w.mu.Lock()
		switch {
		case resp.CompactRevision > 0:
			w.compacted = w.compacted || w.next != c.leapt.Load()+1
			w.next = resp.CompactRevision
			w.mu.Unlock()
			return true
		case resp.Err() != nil:
			w.err = resp.Err()
			w.mu.Unlock()
			return false
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision < w.next {
				w.err = fmt.Errorf("revision %d is repeated or late: the next was %d", e.Kv.ModRevision, w.next)
			}
			w.events = append(w.events, history.Event{KV: history.KVOf(e.Kv), Delete: e.Type == clientv3.EventTypeDelete})
		}
		if len(resp.Events) > 0 {
			w.next = resp.Events[len(resp.Events)-1].Kv.ModRevision + 1
		}
		w.mu.Unlock()
	}
	return false
}

// at says how far the watch is.
func (w *watched) at() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// soFar is a copy that no longer changes: a server's watch goes on until it stops.
func (w *watched) soFar() *watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &watched{node: w.node, events: slices.Clone(w.events), compacted: w.compacted, err: w.err}
}

// check judges what was seen so far.
func (c *cluster) check() {
	c.Helper()
	ops, watches := c.record.all()
	var longest []history.Event // a server's watches, put together, without a gap
	perNode := make(map[string][]history.Event)
	broken := make(map[string]bool)
	for i, w := range watches {
		watches[i] = w.soFar()
		broken[w.node] = broken[w.node] || watches[i].compacted
		if perNode[w.node] = append(perNode[w.node], watches[i].events...); !broken[w.node] && len(perNode[w.node]) > len(longest) {
			longest = perNode[w.node]
		}
	}
	errs := history.CheckSequences([]history.Sequence{{Events: longest}})
	errs = append(errs, history.Judge(ops, history.NewTimeline(longest))...)
	for _, o := range ops {
		if o.Return == 0 {
			errs = append(errs, fmt.Errorf("never returned: %s", o))
		}
	}
	for _, w := range watches {
		errs = append(errs, w.err, w.compare(longest))
	}
	if err := errors.Join(errs...); err != nil {
		c.Errorf("seed %d: %v\n%s", c.seed, err, c.state())
	}
}

// compare returns where a watch saw something else than a story of events.
func (w *watched) compare(story []history.Event) error {
	if len(w.events) == 0 {
		return nil
	}
	index := func(e history.Event) int {
		return slices.IndexFunc(story, func(o history.Event) bool { return o.Mod == e.Mod })
	}
	from := index(w.events[0])
	for i, e := range w.events {
		if w.compacted && from >= 0 && i > 0 && w.events[i-1].Mod != e.Mod {
			from = index(e) - i
		}
		if from < 0 || from+i >= len(story) || !history.Same(e, story[from+i]) {
			return fmt.Errorf("watch of %s: its event %d, %v, is not in the story there", w.node, i, e)
		}
	}
	return nil
}

// settle heals the network, restarts who is down, sees that any majority can work,
// waits until all servers are alike, and checks what was seen on the way.
func (c *cluster) settle() {
	c.Helper()
	c.net.HealAll()
	for _, n := range c.nodes {
		n.mendDisk()
		if n.running() == nil && !n.gone {
			n.start()
		}
	}
	var alive []*node
	for _, n := range c.nodes {
		if !n.gone {
			alive = append(alive, n)
		}
	}
	c.lively(alive)
	for _, n := range alive {
		c.ready(n)
	}
	c.equal(alive)
	c.sameMembers(alive)
	c.check()
}

// equal waits until servers have applied the same, and compares it.
func (c *cluster) equal(nodes []*node) {
	c.Helper()
	c.eventually("the servers are equal", time.Minute, func() bool {
		for _, n := range nodes {
			a, b := n.store.replica.fsm.view(), nodes[0].store.replica.fsm.view()
			if a.Applied() != b.Applied() || a.Revision() != b.Revision() || n.watched.at() != a.Revision()+1 && a.Revision() > 1 {
				return false
			}
		}
		return true
	})
	var first *clientv3.HashKVResponse
	for _, n := range nodes {
		hash, err := n.store.Client().HashKV(c.ctx, "", 0)
		c.endIf(err != nil, "hash of %s: %v", n.name, err)
		if first == nil {
			first = hash
		}
		if hash.Hash != first.Hash || hash.HashRevision != first.HashRevision || hash.CompactRevision != first.CompactRevision {
			c.Errorf("seed %d: %s has hash %x at revision %d, %s has %x at %d", c.seed,
				n.name, hash.Hash, hash.HashRevision, nodes[0].name, first.Hash, first.HashRevision)
		}
	}
}
