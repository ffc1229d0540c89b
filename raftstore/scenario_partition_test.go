// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// within returns a context that ends after so long.
func (c *cluster) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(c.ctx, d)
	c.Cleanup(cancel)
	return ctx
}

// serves checks that servers answer reads and writes.
func (c *cluster) serves(nodes ...*node) {
	c.Helper()
	for _, n := range nodes {
		kv := n.running().Client().KV
		if o := c.put(c.within(10*time.Second), n.name, kv, "serves", fmt.Sprintf("serves %s %d", n.name, c.clock.Add(1))); o.err != nil {
			c.Errorf("seed %d: %v\n%s", c.seed, o, c.state())
		}
		if o := c.get(c.within(10*time.Second), n.name, kv, "serves"); o.err != nil {
			c.Errorf("seed %d: %v\n%s", c.seed, o, c.state())
		}
	}
}

// refuses checks that a server answers neither reads nor writes. What it holds
// can be read all the same, by who asks for no more, unless it has been cut off
// since it started.
func (c *cluster) refuses(n *node) {
	c.Helper()
	kv := n.running().Client().KV
	if o := c.put(c.within(2*time.Second), n.name, kv, "refused", fmt.Sprintf("refused %s %d", n.name, c.clock.Add(1))); o.err == nil {
		c.Errorf("seed %d: a server without a majority wrote: %v", c.seed, o)
	}
	if o := c.get(c.within(2*time.Second), n.name, kv, "serves"); o.err == nil {
		c.Errorf("seed %d: a server without a majority read: %v", c.seed, o)
	}
	ready := false
	select {
	case <-n.running().replica.ready:
		ready = true
	default:
	}
	if _, err := kv.Get(c.within(time.Second), "serves", clientv3.WithSerializable()); ready != (err == nil) {
		c.Errorf("seed %d: a serializable read of a server that was ready (%v): %v", c.seed, ready, err)
	}
}

// Five servers, cut into parts at random over and over, with links that are
// slow and let connections overtake one another.
func TestScenarioFlapping(t *testing.T) {
	scenarios(t, 4, 5, func(c *cluster) {
		c.jitter(2*time.Millisecond, 20*time.Millisecond)
		w := c.work(4)
		for range 25 {
			c.pass(time.Duration(c.rand.Int64N(int64(1200 * time.Millisecond))))
			nodes := c.shuffled()
			switch at := 1 + c.rand.IntN(4); c.rand.IntN(5) {
			case 0:
				c.partition(nodes[:at], nodes[at:])
			case 1:
				c.net.Cut(nodes[0].name, nodes[1].name)
			case 2:
				for _, n := range nodes[1:] {
					c.net.Cut(nodes[0].name, n.name)
				}
			case 3: // a ring: everyone sees two
				for i, n := range nodes {
					c.partition([]*node{n}, []*node{nodes[(i+2)%5], nodes[(i+3)%5]})
				}
			default:
				c.net.HealAll()
			}
		}
		c.net.HealAll()
		c.pass(3 * time.Second)
		c.serves(c.nodes...)
		w.stop()
		c.failIf(c.acked() < 100, "only %d writes were acknowledged", c.acked())
	})
}

// jitter makes all links slow.
func (c *cluster) jitter(delay, jitter time.Duration) {
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b {
				c.net.Delay(a.name, b.name, delay, jitter)
			}
		}
	}
}

// cutLink lets nothing pass between two servers.
func (c *cluster) cutLink(a, b *node) {
	c.net.Cut(a.name, b.name)
	c.net.Cut(b.name, a.name)
}

// linkCutWithin bounds how long a server may be without a leader when only its link to the leader is cut.
const linkCutWithin = 8 * time.Second

// Links between single servers are cut at random, now and then with a crash, while clients work. One server, which
// changes, reaches all that run: then all of them serve within seconds.
func TestScenarioSingleLinks(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenarios(t, 2, n, func(c *cluster) {
				w := c.work(2)
				for range 5 {
					c.net.HealAll()
					c.pass(time.Duration(c.rand.Int64N(int64(8 * time.Second))))
					nodes := c.shuffled()
					running := nodes
					if last := nodes[n-1]; c.rand.IntN(4) == 0 {
						last.crash()
						running = nodes[:n-1]
					}
					for i, a := range running[1:] { // the first keeps its links
						for _, b := range running[1+i+1:] {
							if c.rand.IntN(2) == 0 {
								c.cutLink(a, b)
							}
						}
					}
					c.pass(2 * linkCutWithin) // most of a majority's elections are over, too
					c.serves(running...)
					if last := nodes[n-1]; last.running() == nil {
						last.start()
					}
				}
				w.stop()
			})
		})
	}
}
