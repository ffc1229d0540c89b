// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/coracle-k8s/coracle/test/history"
)

// clients are at work while a scenario goes on, each with one request at a
// time, through servers at random.
type clients struct {
	c      *cluster
	cancel context.CancelFunc
	gone   chan struct{}
}

const (
	clientPause    = 30 * time.Millisecond // between a client's requests, at most
	clientPatience = 1500 * time.Millisecond
)

// work puts n clients to work on all servers, or the given ones.
func (c *cluster) work(n int, on ...*node) *clients {
	ctx, cancel := context.WithCancel(c.ctx)
	w := &clients{c: c, cancel: cancel, gone: make(chan struct{})}
	working := make(chan struct{}, n)
	for range n {
		c.actors++
		id := c.actors
		c.tasks.Go(func() {
			c.client(ctx, id, on)
			working <- struct{}{}
		})
	}
	c.tasks.Go(func() {
		for range n {
			<-working
		}
		close(w.gone)
	})
	return w
}

// stop lets the clients finish what they are doing.
func (w *clients) stop() {
	w.cancel()
	<-w.gone
}

func (c *cluster) client(ctx context.Context, id int, on []*node) {
	r := rand.New(rand.NewPCG(c.seed, uint64(id)+1000))
	revisions := make(map[string]int64) // what it last saw of each key
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(r.Int64N(int64(clientPause)))):
		}
		nodes := on
		if nodes == nil {
			c.mu.Lock()
			nodes = c.nodes
			c.mu.Unlock()
		}
		n := nodes[r.IntN(len(nodes))]
		s := n.running()
		if s == nil {
			continue
		}
		// Not of ctx: who stops working still wants an answer.
		request, cancel := context.WithTimeout(c.ctx, clientPatience)
		key, value := fmt.Sprintf("r%d", r.IntN(4)), fmt.Sprintf("%d.%d", id, i)
		kv := s.Client().KV
		var o *operation
		switch r.IntN(12) {
		case 0, 1:
			o = c.put(request, n.name, kv, key, value)
		case 2, 3:
			o = c.cas(request, n.name, kv, key, value, revisions[key])
		case 4:
			o = c.put(request, n.name, kv, fmt.Sprintf("own%d", id), value)
		case 5:
			if lead := s.Status().Leadership; lead.Leader {
				o = c.fenced(request, n.name, kv, "fenced", value, lead.Term)
			}
		case 6:
			if revisions[key] > 0 {
				o = c.remove(request, n.name, kv, key, revisions[key])
			}
		case 7:
			o = c.list(request, n.name, kv, "r")
		case 8:
			o = c.peek(request, n.name, kv, key)
		default:
			o = c.get(request, n.name, kv, key)
		}
		cancel()
		switch {
		case o == nil || o.err != nil || o.Key != key || o.Kind == history.KindSerializable:
		case len(o.Puts) > 0 && o.Succeeded:
			revisions[key] = o.Rev
		case len(o.KVs) > 0:
			revisions[key] = o.KVs[0].Mod
		default:
			revisions[key] = 0
		}
	}
}
