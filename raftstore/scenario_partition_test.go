// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
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

// The leader is alone with a minority. The majority elects another and goes
// on; on the other side nothing happens any more, least of all in the name of
// the leader that was.
func TestScenarioLeaderInMinority(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenarios(t, 3, n, func(c *cluster) {
				w := c.work(3)
				c.pass(time.Second)
				leader := c.leader()
				term := leader.term()
				minority := append([]*node{leader}, c.others(leader)[:(n-1)/2-1]...)
				majority := c.others(minority...)
				c.isolate(minority...)

				// Writes of this very moment, in the term that is still its own.
				o := c.fenced(c.within(3*time.Second), leader.name, leader.running().Client().KV, "fenced", fmt.Sprintf("late %d", c.seed), term)
				c.failIf(o.err == nil, "a leader without a majority wrote: %v", o)
				c.leader(majority...)
				c.serves(majority...)
				for _, m := range minority {
					c.refuses(m)
				}
				c.failIf(leader.leads(), "it still says that it leads")
				o = c.fenced(c.within(3*time.Second), leader.name, leader.running().Client().KV, "fenced", fmt.Sprintf("later %d", c.seed), term)
				c.failIf(!errors.Is(o.err, mvcc.ErrFenced), "a write in the term of its leadership: %v", o)
				c.net.HealAll()
				c.pass(time.Second)
				c.serves(c.nodes...)
				w.stop()
			})
		})
	}
}

// A follower that was away does not depose the leader when it comes back: it
// asks first whether anybody would vote for it (pre-vote), and so its term has
// not grown.
func TestScenarioPreVote(t *testing.T) {
	for _, how := range []string{"symmetric", "deaf", "mute"} {
		t.Run(how, func(t *testing.T) {
			scenarios(t, 3, 3, func(c *cluster) {
				w := c.work(2)
				c.pass(time.Second)
				leader := c.leader()
				term := leader.term()
				away := c.others(leader)[c.rand.IntN(2)]
				for _, o := range c.others(away) {
					if how != "mute" {
						c.net.Cut(o.name, away.name)
					}
					if how != "deaf" {
						c.net.Cut(away.name, o.name)
					}
				}
				c.pass(10 * time.Second)
				c.serves(c.others(away)...)
				c.net.HealAll()
				c.pass(3 * time.Second)
				c.serves(c.nodes...)
				c.failIf(leader.term() != term || !leader.leads(), "term %d became %d", term, leader.term())
				w.stop()
			})
		})
	}
}

// The leader can send but not receive, or receive but not send. Either way it
// cannot know that it leads: it must stop, and another one lead.
func TestScenarioOneWay(t *testing.T) {
	for _, how := range []string{"deaf", "mute"} {
		t.Run(how, func(t *testing.T) {
			scenarios(t, 3, 3, func(c *cluster) {
				w := c.work(3)
				c.pass(time.Second)
				leader := c.leader()
				others := c.others(leader)
				for _, o := range others {
					if how == "deaf" {
						c.net.Cut(o.name, leader.name)
					} else {
						c.net.Cut(leader.name, o.name)
					}
				}
				c.eventually("it stops leading", 5*time.Second, func() bool { return !leader.leads() })
				c.leader(others...)
				c.serves(others...)
				c.refuses(leader)
				c.net.HealAll()
				c.pass(2 * time.Second)
				c.serves(c.nodes...)
				w.stop()
			})
		})
	}
}

// A and C cannot see one another, both see B. There is a leader, whichever it is,
// and everyone whom B can reach goes on.
func TestScenarioBridge(t *testing.T) {
	scenarios(t, 4, 3, func(c *cluster) {
		w := c.work(3)
		c.pass(time.Second)
		three := c.shuffled()
		a, b, d := three[0], three[1], three[2]
		c.cutLink(a, d)
		c.pass(3 * time.Second)
		c.leader()
		terms := b.term()
		c.serves(b)
		c.pass(10 * time.Second)
		if grown := b.term() - terms; grown > 1 {
			c.Errorf("seed %d: %d elections while nothing changed\n%s", c.seed, grown, c.state())
		}
		c.net.HealAll()
		c.pass(2 * time.Second)
		c.serves(c.nodes...)
		w.stop()
	})
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

// Links take up to half of what a server waits for its leader, each message
// another time, so that connections overtake one another. The leader keeps
// leading.
func TestScenarioSlowLinks(t *testing.T) {
	scenarios(t, 3, 3, func(c *cluster) {
		c.jitter(5*time.Millisecond, 30*time.Millisecond)
		w := c.work(5)
		leader := c.leader()
		term := leader.term()
		c.pass(15 * time.Second)
		w.stop()
		c.failIf(leader.term() != term, "term %d became %d", term, leader.term())
	})
}
