// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// record is what clients and watchers saw. Revisions order all writes, so it
// can be judged without a search: see check.
type record struct {
	clock atomic.Uint64 // orders calls and returns

	mu      sync.Mutex
	ops     []*operation
	watched []*watched
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

func (h *record) end(o *operation, header *pb.ResponseHeader, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.returned, o.err = h.clock.Add(1), err
	if err == nil {
		o.revision = header.Revision
	}
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
	if err == nil {
		header, o.done = resp.Header, resp.Succeeded
		if !resp.Succeeded {
			o.found = resp.Responses[0].GetResponseRange().Kvs
		} else if o.what == "delete" {
			o.done = resp.Responses[0].GetResponseDeleteRange().Deleted > 0
		}
	}
	h.end(o, header, err)
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
	if err == nil {
		header, o.found = resp.Header, resp.Kvs
	}
	h.end(o, header, err)
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
			w.next = earlier.next
		}
	}
	c.record.watched = append(c.record.watched, w)
	c.record.mu.Unlock()
	c.tasks.Go(func() {
		defer close(w.ended)
		for ctx.Err() == nil && w.follow(ctx, s) {
		}
	})
	return w
}

// follow returns true if it is to be called again.
func (w *watched) follow(ctx context.Context, s *Store) bool {
	for resp := range s.Client().Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(w.next)) {
		w.mu.Lock()
		switch {
		case resp.CompactRevision > 0:
			w.next, w.compacted = resp.CompactRevision, true
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

// settle heals the network, restarts who is down, waits until all servers are
// alike, and checks what was seen on the way.
func (c *cluster) settle() {
	c.Helper()
	c.net.HealAll()
	for _, n := range c.nodes {
		n.faults.DelayFlushes(0)
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
	for _, n := range alive {
		c.ready(n)
	}
	c.alike(alive)
	c.check(alive)
}

// alike waits until servers have applied the same, and compares it.
func (c *cluster) alike(nodes []*node) {
	c.Helper()
	c.eventually("the servers are alike", time.Minute, func() bool {
		for _, n := range nodes {
			a, b := n.store.fsm.view(), nodes[0].store.fsm.view()
			if a.Applied() != b.Applied() || a.Revision() != b.Revision() || n.watched.at() != a.Revision()+1 && a.Revision() > 1 {
				return false
			}
		}
		return true
	})
	var first *clientv3.HashKVResponse
	for _, n := range nodes {
		hash, err := n.store.Client().HashKV(c.ctx, "", 0)
		if err != nil {
			c.Fatalf("seed %d: hash of %s: %v", c.seed, n.name, err)
		}
		if first == nil {
			first = hash
		}
		if hash.Hash != first.Hash || hash.HashRevision != first.HashRevision || hash.CompactRevision != first.CompactRevision {
			c.Errorf("seed %d: %s has hash %x at revision %d, %s has %x at %d", c.seed,
				n.name, hash.Hash, hash.HashRevision, nodes[0].name, first.Hash, first.HashRevision)
		}
	}
}

// check judges the history:
//
//   - every server's watch tells the same story, without a gap or repetition;
//   - each value, which is written once, is in it once at most, and if
//     acknowledged, at the revision that the client was told;
//   - what was surely not done is not in it;
//   - every answer is true of the story at its revision;
//   - an operation that began after another had ended has no smaller revision,
//     and a greater one if it wrote: with the above, that is linearizability;
//   - fenced writes never go back to an earlier term.
func (c *cluster) check(nodes []*node) {
	c.Helper()
	story := c.story()
	s := newStoryBook(story)
	for _, problem := range append(s.problems, judge(s, c.record.ops)...) {
		c.Errorf("seed %d: %s", c.seed, problem)
	}
	for _, w := range c.record.watched {
		if w.err != nil {
			c.Errorf("seed %d: watch of %s: %v", c.seed, w.node, w.err)
		}
		s.compare(w, func(format string, args ...any) { c.Errorf("seed %d: "+format, append([]any{c.seed}, args...)...) })
	}
	if c.Failed() {
		c.Log(c.state())
	}
}

// story is the longest that a server's watches, put together, tell without a
// gap.
func (c *cluster) story() []*clientv3.Event {
	perNode := make(map[string][]*clientv3.Event)
	broken := make(map[string]bool)
	for _, w := range c.record.watched {
		perNode[w.node] = append(perNode[w.node], w.events...)
		broken[w.node] = broken[w.node] || w.compacted
	}
	var story []*clientv3.Event
	for node, events := range perNode {
		if !broken[node] && len(events) > len(story) {
			story = events
		}
	}
	return story
}

// storyBook is a story with indexes.
type storyBook struct {
	events   []*clientv3.Event
	byKey    map[string][]*mvccpb.KeyValue // in order; a deletion has version 0
	byValue  map[string]*mvccpb.KeyValue
	at       map[int64][]*clientv3.Event
	last     int64
	problems []string
}

func newStoryBook(events []*clientv3.Event) *storyBook {
	s := &storyBook{
		events: events, byKey: make(map[string][]*mvccpb.KeyValue),
		byValue: make(map[string]*mvccpb.KeyValue), at: make(map[int64][]*clientv3.Event),
	}
	for _, e := range events {
		kv := e.Kv
		key := string(kv.Key)
		s.at[kv.ModRevision] = append(s.at[kv.ModRevision], e)
		s.last = kv.ModRevision
		before := s.keyAt(key, kv.ModRevision-1)
		if e.Type == clientv3.EventTypePut {
			version := int64(1)
			if before != nil {
				version = before.Version + 1
			}
			if kv.Version != version {
				s.problem("%s=%s at %d has version %d instead of %d", key, kv.Value, kv.ModRevision, kv.Version, version)
			}
			if twice := s.byValue[string(kv.Value)]; twice != nil {
				s.problem("%s=%s was done twice, at %d and %d", key, kv.Value, twice.ModRevision, kv.ModRevision)
			}
			s.byValue[string(kv.Value)] = kv
		} else if before == nil {
			s.problem("%s was deleted at %d, but it was not there", key, kv.ModRevision)
		}
		s.byKey[key] = append(s.byKey[key], kv)
	}
	return s
}

func (s *storyBook) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// keyAt is a key as of a revision, or nil.
func (s *storyBook) keyAt(key string, revision int64) *mvccpb.KeyValue {
	versions := s.byKey[key]
	i, _ := slices.BinarySearchFunc(versions, revision+1, func(kv *mvccpb.KeyValue, r int64) int {
		return int(kv.ModRevision - r)
	})
	if i == 0 || versions[i-1].Version == 0 {
		return nil
	}
	return versions[i-1]
}

// rangeAt are the keys with a prefix as of a revision, in order.
func (s *storyBook) rangeAt(prefix string, revision int64) []*mvccpb.KeyValue {
	var out []*mvccpb.KeyValue
	for _, key := range slices.Sorted(maps.Keys(s.byKey)) {
		if kv := s.keyAt(key, revision); kv != nil && strings.HasPrefix(key, prefix) {
			out = append(out, kv)
		}
	}
	return out
}

func sameKV(a, b *mvccpb.KeyValue) bool {
	return string(a.Key) == string(b.Key) && string(a.Value) == string(b.Value) && a.ModRevision == b.ModRevision &&
		a.CreateRevision == b.CreateRevision && a.Version == b.Version && a.Lease == b.Lease
}

// compare holds a watch's events against the story.
func (s *storyBook) compare(w *watched, fail func(format string, args ...any)) {
	if len(w.events) == 0 {
		return
	}
	from := slices.IndexFunc(s.events, func(e *clientv3.Event) bool { return e.Kv.ModRevision == w.events[0].Kv.ModRevision })
	for i, e := range w.events {
		if w.compacted && from >= 0 && i > 0 && w.events[i-1].Kv.ModRevision != e.Kv.ModRevision {
			from = slices.IndexFunc(s.events, func(o *clientv3.Event) bool { return o.Kv.ModRevision == e.Kv.ModRevision }) - i
		}
		if from < 0 || from+i >= len(s.events) || !sameKV(e.Kv, s.events[from+i].Kv) || e.Type != s.events[from+i].Type {
			fail("watch of %s: its event %d, %v, is not in the story there", w.node, i, e)
			return
		}
	}
}

// judge holds operations against the story.
func judge(s *storyBook, ops []*operation) []string {
	var out []string
	fail := func(o *operation, format string, args ...any) {
		out = append(out, fmt.Sprintf(format, args...)+": "+o.String())
	}
	for _, o := range ops {
		writes := o.value != ""
		event := s.byValue[o.value]
		switch {
		case o.returned == 0:
			fail(o, "never returned")
		case o.err != nil:
			if writes && event != nil && errors.Is(o.err, mvcc.ErrFenced) {
				fail(o, "refused, but done at %d", event.ModRevision)
			}
		case o.done && writes:
			if event == nil || event.ModRevision != o.revision || string(event.Key) != o.key {
				fail(o, "acknowledged, but lost or elsewhere (%v)", event)
			}
		case o.what == "list":
			if want := s.rangeAt(o.key, o.revision); !slices.EqualFunc(want, o.found, sameKV) {
				fail(o, "listed %v, but that revision has %v", o.found, want)
			}
		case o.done: // deleted
			if kv := s.keyAt(o.key, o.revision); kv != nil {
				fail(o, "deleted, but there")
			}
		default:
			kv := s.keyAt(o.key, o.revision)
			if (kv == nil) != (len(o.found) == 0) || kv != nil && !sameKV(kv, o.found[0]) {
				fail(o, "found %v, but that revision has %v", o.found, kv)
			}
			if writes && event != nil {
				fail(o, "not done, says the answer, but done at %d", event.ModRevision)
			}
			if o.what == "cas" && (kv == nil && o.was == 0 || kv != nil && kv.ModRevision == o.was) {
				fail(o, "not done, but it should have been")
			}
		}
		if o.done && (o.what == "cas" || o.what == "delete") {
			if kv := s.keyAt(o.key, o.revision-1); kv == nil && o.was != 0 || kv != nil && kv.ModRevision != o.was {
				fail(o, "done, but the key was another: %v", kv)
			}
		}
	}
	return append(append(out, judgeOrder(s, ops)...), judgeTerms(s, ops)...)
}

// judgeOrder looks for operations with revisions before what was known when
// they began.
func judgeOrder(s *storyBook, ops []*operation) []string {
	type moment struct {
		stamp uint64
		op    *operation
	}
	var moments []moment
	for _, o := range ops {
		if o.what == "peek" {
			continue
		}
		moments = append(moments, moment{o.called, o})
		if o.err == nil {
			moments = append(moments, moment{o.returned, o})
		}
	}
	slices.SortFunc(moments, func(a, b moment) int { return int(int64(a.stamp) - int64(b.stamp)) })
	var out []string
	var known int64
	for _, m := range moments {
		o := m.op
		if m.stamp == o.returned && o.err == nil {
			known = max(known, o.revision)
			continue
		}
		revision := o.revision
		if o.err != nil {
			event := s.byValue[o.value]
			if o.value == "" || event == nil {
				continue
			}
			revision = event.ModRevision
		}
		if revision < known || revision == known && (o.done || o.err != nil) {
			out = append(out, fmt.Sprintf("stale: revision %d was known before: %v", known, o))
		}
	}
	return out
}

func judgeTerms(s *storyBook, ops []*operation) []string {
	terms := make(map[string]uint64)
	for _, o := range ops {
		if o.what == "fenced" {
			terms[o.value] = o.term
		}
	}
	var out []string
	var newest uint64
	for _, e := range s.events {
		term, ok := terms[string(e.Kv.Value)]
		if !ok || e.Type != clientv3.EventTypePut {
			continue
		}
		if term < newest {
			out = append(out, fmt.Sprintf("%s=%s of term %d was done at %d after a write of term %d", e.Kv.Key, e.Kv.Value, term, e.Kv.ModRevision, newest))
		}
		newest = max(newest, term)
	}
	return out
}
