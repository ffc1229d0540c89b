// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// record is what clients and watchers saw. Revisions order all writes, so it
// can be judged without a search: see check.
type record struct {
	clock atomic.Uint64 // orders calls and returns

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
	what, node string
	at         time.Time
	key, value string // of what it writes, if it does
	term       uint64 // of a fenced write
	was        int64  // the mod revision that a cas compares with

	called, returned uint64
	err              error
	revision         int64 // of the answer
	done             bool  // it says that it changed something
	found            []*mvccpb.KeyValue
}

func (o *operation) String() string {
	return fmt.Sprintf("%s %s=%s through %s at %v: called %d, returned %d, revision %d, done %v, found %d, was %d, term %d, err %v",
		o.what, o.key, o.value, o.node, o.at.Format("05.000"), o.called, o.returned, o.revision, o.done, len(o.found), o.was, o.term, o.err)
}

func (h *record) begin(o *operation) {
	o.called = h.clock.Add(1)
	o.at = time.Now()
	h.mu.Lock()
	h.ops = append(h.ops, o)
	h.mu.Unlock()
}

// end notes an operation's answer.
func (h *record) end(o *operation, header *pb.ResponseHeader, done bool, found []*mvccpb.KeyValue, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.returned, o.done, o.found, o.err = h.clock.Add(1), done, found, err
	if err == nil {
		o.revision = header.Revision
	}
}

// all returns what was done and what was watched so far. Operations must have ended.
func (h *record) all() ([]*operation, []*watched) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops), slices.Clone(h.watched)
}

// acked counts the writes that were acknowledged so far.
func (h *record) acked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, o := range h.ops {
		if o.done {
			n++
		}
	}
	return n
}

// The operations that clients do.

func (h *record) put(ctx context.Context, node string, c clientv3.KV, key, value string) *operation {
	o := &operation{what: "put", node: node, key: key, value: value}
	return h.write(ctx, o, c, nil)
}

// fenced writes as the leader of a term.
func (h *record) fenced(ctx context.Context, node string, c clientv3.KV, key, value string, term uint64) *operation {
	o := &operation{what: "fenced", node: node, key: key, value: value, term: term}
	return h.write(WithTerm(ctx, term), o, c, nil)
}

func (h *record) cas(ctx context.Context, node string, c clientv3.KV, key, value string, was int64) *operation {
	o := &operation{what: "cas", node: node, key: key, value: value, was: was}
	return h.write(ctx, o, c, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", was)})
}

func (h *record) remove(ctx context.Context, node string, c clientv3.KV, key string, was int64) *operation {
	o := &operation{what: "delete", node: node, key: key, was: was}
	return h.write(ctx, o, c, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", was)})
}

func (h *record) write(ctx context.Context, o *operation, c clientv3.KV, cmps []clientv3.Cmp) *operation {
	change := clientv3.OpPut(o.key, o.value)
	if o.what == "delete" {
		change = clientv3.OpDelete(o.key)
	}
	txn := c.Txn(ctx).If(cmps...).Then(change).Else(clientv3.OpGet(o.key))
	h.begin(o)
	resp, err := txn.Commit()
	var header *pb.ResponseHeader
	var done bool
	var found []*mvccpb.KeyValue
	if err == nil {
		header, done = resp.Header, resp.Succeeded
		if !resp.Succeeded {
			found = resp.Responses[0].GetResponseRange().Kvs
		} else if o.what == "delete" {
			done = resp.Responses[0].GetResponseDeleteRange().Deleted > 0
		}
	}
	h.end(o, header, done, found, err)
	return o
}

func (h *record) get(ctx context.Context, node string, c clientv3.KV, key string) *operation {
	o := &operation{what: "get", node: node, key: key}
	return h.read(o, func() (*clientv3.GetResponse, error) { return c.Get(ctx, key) })
}

// list reads all keys with a prefix.
func (h *record) list(ctx context.Context, node string, c clientv3.KV, prefix string) *operation {
	o := &operation{what: "list", node: node, key: prefix}
	return h.read(o, func() (*clientv3.GetResponse, error) { return c.Get(ctx, prefix, clientv3.WithPrefix()) })
}

// peek reads what a server has, be it old.
func (h *record) peek(ctx context.Context, node string, c clientv3.KV, key string) *operation {
	o := &operation{what: "peek", node: node, key: key}
	return h.read(o, func() (*clientv3.GetResponse, error) { return c.Get(ctx, key, clientv3.WithSerializable()) })
}

func (h *record) read(o *operation, get func() (*clientv3.GetResponse, error)) *operation {
	h.begin(o)
	resp, err := get()
	var header *pb.ResponseHeader
	var found []*mvccpb.KeyValue
	if err == nil {
		header, found = resp.Header, resp.Kvs
	}
	h.end(o, header, false, found, err)
	return o
}

// watched is what a watch of everything on one server delivered, over all its
// runs.
type watched struct {
	node   string
	ended  chan struct{}
	mu     sync.Mutex
	events []*clientv3.Event
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
			w.events = append(w.events, e)
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

// settle heals the network, restarts who is down, sees that any majority can work,
// waits until all servers are alike, and checks what was seen on the way.
func (c *cluster) settle() {
	c.Helper()
	c.net.HealAll()
	for _, n := range c.nodes {
		n.faults.DelayFlushes(0)
		n.faults.DelaySnapshots(0)
		n.faults.FailWrites(nil)
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
