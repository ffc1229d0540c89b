// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Disks of which each is slow in its own way, from a good one to one that takes almost as long as a stalled one. The
// leader vanishes, or all servers restart at once, when none of them knows yet how long the others' disks take.
// A candidate has to wait for the slowest voter that it needs, or none is ever elected.
func TestScenarioUnlikeDisks(t *testing.T) {
	takes := []time.Duration{0, 0, 20, 60, 150, 300, 600, 900}
	for _, how := range []string{"vanishes", "all restart"} {
		t.Run(how, func(t *testing.T) {
			var all []time.Duration
			seeds(t, 12, func(t *testing.T, seed uint64) {
				scenario(t, seed, 3+2*int(seed%2), func(c *cluster) {
					w := c.work(2)
					c.pass(time.Second)
					flushes := make([]time.Duration, len(c.nodes))
					for i := range c.nodes {
						flushes[i] = takes[c.rand.IntN(len(takes))] * time.Millisecond
					}
					slow := func() {
						for i, n := range c.nodes {
							n.faults.DelayFlushes(flushes[i])
						}
					}
					alive := c.nodes
					if how == "vanishes" {
						slow()
						c.pass(time.Duration(c.rand.Int64N(int64(8 * time.Second))))
						leader := c.leader()
						c.isolate(leader)
						alive = c.others(leader)
					} else {
						w.stop()
						for _, n := range c.nodes {
							n.crash()
						}
						slow()
						for _, n := range c.nodes {
							c.tasks.Go(func() {
								if err := n.tryStart(); err != nil {
									c.Errorf("seed %d: start %s: %v", seed, n.name, err)
								}
							})
						}
					}
					took := c.untilLed(alive, 2*time.Minute)
					all = append(all, took)
					// What the slowest two candidacies take is what the steady case needs at most. Several servers may
					// be candidates at once by chance, and again after that: three times as long came once. A fault of
					// the wait elects none at all.
					slowest := slices.Max(flushes)
					limit := 6 * (flushesOfVote*slowest + 2*max(candidateFor*defaultElectionTimeout, defaultElectionTimeout+flushesOfVote*slowest))
					if t.Logf("seed %d: flushes take %v: a leader after %v", seed, flushes, took); took > limit {
						t.Errorf("seed %d: flushes take %v: no leader for %v of at most %v\n%s", seed, flushes, took, limit, c.state())
					}
					c.mendDisks()
					c.net.HealAll()
					c.pass(2 * time.Second)
					if how == "vanishes" {
						w.stop()
					}
				})
			})
			slices.Sort(all)
			if len(all) > 0 {
				t.Logf("p50 %v, max %v of %d", all[len(all)/2], all[len(all)-1], len(all))
			}
		})
	}
}

// untilLed is how long it takes until one of the servers leads; that long if none does.
func (c *cluster) untilLed(among []*node, atMost time.Duration) time.Duration {
	began := time.Now()
	for ; time.Since(began) < atMost; time.Sleep(5 * time.Millisecond) {
		if slices.ContainsFunc(among, (*node).leads) {
			break
		}
	}
	return time.Since(began)
}

// Links fail one way and another at random, between two to six servers. As long as a majority of the voters hear one
// another, there is soon a leader, whatever the others send and hear. It may transfer the leadership once or twice to a
// server that reaches more; then no server deposes the leader, neither while the links are as they are nor when they
// are mended.
func TestScenarioCrookedLinks(t *testing.T) {
	var all []time.Duration
	seeds(t, 8, func(t *testing.T, seed uint64) {
		scenario(t, seed, 2+int(seed%4), func(c *cluster) {
			w := c.work(2)
			c.pass(time.Second)
			for range 3 {
				if leader := c.leader(); c.rand.IntN(3) == 0 && len(c.nodes) < 6 {
					c.join(string(rune('a'+len(c.nodes))), leader.name)
					c.rest(time.Minute, len(c.nodes)-(len(c.nodes)+1)%2, names(c.nodes)...)
				}
				well, cuts := c.crook()
				took := c.untilWrites(well)
				all = append(all, took)
				if took > liveWithin {
					t.Errorf("seed %d: %v hear one another, and nothing was written for %v; cut are %s\n%s", seed, names(well), took, cuts, c.state())
				}
				c.pass(3 * time.Second)
				term := c.leader().term()
				c.pass(30 * time.Second)
				if grown := c.leader().term() - term; grown > 2 {
					t.Errorf("seed %d: %d leaders in half a minute in which nothing changed; cut are %s\n%s", seed, grown, cuts, c.state())
				}
				term = c.leader().term()
				c.pass(20 * time.Second)
				if grown := c.leader().term() - term; grown > 0 {
					t.Errorf("seed %d: %d elections while nothing changed; cut are %s\n%s", seed, grown, cuts, c.state())
				}
				term = c.leader().term()
				c.net.HealAll()
				c.pass(5 * time.Second)
				if grown := c.leader().term() - term; grown > 0 {
					t.Errorf("seed %d: %d elections since the links were mended; cut were %s\n%s", seed, grown, cuts, c.state())
				}
			}
			w.stop()
		})
	})
	slices.Sort(all)
	if len(all) > 0 {
		t.Logf("until a write: p50 %v, max %v of %d", all[len(all)/2], all[len(all)-1], len(all))
	}
}

// crook cuts links at random, each way by itself, but those within a majority of the voters, which it returns.
func (c *cluster) crook() (well []*node, cuts string) {
	for _, n := range c.shuffled() {
		if !c.majority(well, c.nodes) {
			well = append(well, n)
		}
	}
	var words []string
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a == b || contains(well, a) && contains(well, b) || c.rand.IntN(2) == 0 {
				continue
			}
			c.net.Cut(a.host, b.host)
			words = append(words, a.name+">"+b.name)
		}
	}
	return well, strings.Join(words, " ")
}

// untilWrites is how long it takes until a write through one of the servers succeeds.
func (c *cluster) untilWrites(through []*node) time.Duration {
	began := time.Now()
	for time.Since(began) < 2*liveWithin {
		for _, n := range through {
			o := c.put(c.within(2*time.Second), n.name, n.running().Client().KV, "crooked", fmt.Sprintf("crooked %d", c.clock.Add(1)))
			if o.err == nil {
				return time.Since(began)
			}
		}
		c.pass(20 * time.Millisecond)
	}
	return time.Since(began)
}
