// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// cutLink lets nothing pass between two servers.
func (c *cluster) cutLink(a, b *node) {
	c.net.Cut(a.name, b.name)
	c.net.Cut(b.name, a.name)
}

// linkCutWithin bounds how long a server may be without a leader when only its link to the leader is cut.
const linkCutWithin = 8 * time.Second

// Only the link between the leader and one other server is cut. A server that both reach leads within seconds, so that
// all serve; then the leadership stays where it is.
func TestScenarioOneLinkCut(t *testing.T) {
	for _, n := range []int{3, 4, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenarios(t, 3, n, func(c *cluster) {
				leader := c.leader()
				other := c.others(leader)[c.rand.IntN(len(c.nodes)-1)]
				c.cutLink(leader, other)
				c.pass(linkCutWithin)
				term := c.leader().term()
				for range 120 {
					c.serves(other)
					c.pass(time.Second)
				}
				c.serves(c.nodes...)
				if now := c.leader().term(); now != term {
					c.Errorf("seed %d: term %d became %d while nothing changed\n%s", c.seed, term, now, c.state())
				}
			})
		})
	}
}

// A server has been lost for minutes, and then the link between the leader and another one is cut. A server that both
// reach leads as soon as if none were lost.
func TestScenarioOneLinkCutBesideLostServer(t *testing.T) {
	scenarios(t, 3, 5, func(c *cluster) {
		leader := c.leader()
		others := c.others(leader)
		others[3].crash()
		c.pass(time.Duration(2+c.rand.IntN(5))*time.Minute + time.Duration(c.rand.Int64N(int64(time.Minute))))
		leader = c.leader()
		c.cutLink(leader, others[0])
		c.pass(linkCutWithin)
		c.serves(append(others[:3:3], leader)...)
		c.net.HealAll()
		others[3].start()
	})
}

// A member is lost to all others for some seconds, again and again, by its links or by a restart. The leader keeps the
// leadership each time the member is back, although another server may reach that one a moment earlier.
func TestScenarioMemberIsBack(t *testing.T) {
	scenarios(t, 5, 3, func(c *cluster) {
		leader := c.leader()
		lost := c.others(leader)[0]
		term := leader.term()
		for range 60 {
			restarts := c.rand.IntN(2) == 0
			if restarts {
				lost.crash()
			} else {
				c.isolate(lost)
			}
			c.pass(time.Duration(c.rand.Int64N(int64(10 * time.Second))))
			if restarts {
				lost.start()
			} else {
				c.net.HealAll()
			}
			c.pass(3 * time.Second)
			if now := c.leader().term(); now != term {
				c.Fatalf("seed %d: term %d became %d when a lost member came back (restarted: %v)\n%s", c.seed, term, now, restarts, c.state())
			}
		}
	})
}

// No server reaches more than the leader does, and one hears it not. That one knows a server that reaches the leader,
// and takes itself for no removed one; when the link is whole it has a leader again.
func TestScenarioCutOffFromTheLeader(t *testing.T) {
	scenarios(t, 2, 5, func(c *cluster) {
		leader := c.leader()
		others := c.others(leader)
		cut, d, e, f := others[0], others[1], others[2], others[3]
		c.cutLink(leader, cut)
		c.cutLink(f, cut)
		c.cutLink(d, e)
		c.eventually("it knows that it is cut off", time.Minute, func() bool { return cut.running().Health().CutOff() })
		c.failIf(!cut.running().Health().MembershipConfirmed(), "it does not know that the others count it")
		if to := cut.running().Health().OtherLeader(); to != d.name && to != e.name {
			c.Errorf("seed %d: it sends its clients to %q, which does not reach the leader", c.seed, to)
		}
		reached := cut.running().cluster.ReachedBy(c.ctx, cut.running().cluster.Survey(c.ctx))
		if len(reached[leader.name]) != 2 || cut.running().Health().Removed() || !leader.leads() {
			c.Errorf("seed %d: who reaches those that do not answer: %v; taken out: %v\n%s", c.seed, reached,
				cut.running().Health().Removed(), c.state())
		}
		c.net.HealAll()
		c.eventually("it hears the leader", 10*time.Second, func() bool { return !cut.running().Health().CutOff() && cut.running().leader.hasLeader() })
		c.serves(c.nodes...)
	})
}

// A server whose disk stalls, or that is off, is reached by no other. The leadership stays where it is.
func TestScenarioNoBetterLeader(t *testing.T) {
	for what, play := range map[string]func(*node){
		"hangs": func(a *node) { a.faults.DelayFlushes(time.Hour) },
		"off":   func(a *node) { a.crash() },
	} {
		t.Run(what, func(t *testing.T) {
			stage(t, 1, 3, nil, func(c *cluster) {
				leader := c.leader()
				term := leader.term()
				play(c.others(leader)[0])
				for range 60 {
					c.serves(leader)
					c.pass(time.Second)
				}
				if !leader.leads() || leader.term() != term {
					t.Errorf("term %d became %d\n%s", term, leader.term(), c.state())
				}
				c.mendDisks()
			})
		})
	}
}

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
