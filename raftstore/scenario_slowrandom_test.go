// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// slowWrite is how long there may be no write, at most, where each flush takes that long and no leader changes. A
// client's first write through a server takes four flushes: two for a session and two for itself. At 2 s and more that
// is longer than a request may take, so that the one after it may have to wait as well. Of 200 seeds the longest took 4
// flushes up to 1.5 s, 6 at 2 s, and 7.3 at 3 s, with the client's pause of up to a second.
func slowWrite(flush time.Duration) time.Duration { return 2*time.Second + 9*flush }

// All disks, or those of a majority, are slow for minutes. None is faster than the leader, so it keeps its place, and
// writes go on.
func TestScenarioSlowRandom(t *testing.T) {
	takes := []time.Duration{300, 700, 1000, 1100, 1300, 1500, 2000, 3000}
	seeds(t, 12, func(t *testing.T, seed uint64) {
		scenario(t, seed, 3+2*int(seed%2), func(c *cluster) {
			slow := takes[c.rand.IntN(len(takes))] * time.Millisecond
			var quick []string
			for i, n := range c.shuffled() {
				if i < len(c.nodes)/2 && c.rand.IntN(2) == 0 {
					quick = append(quick, n.name)
					continue
				}
				n.faults.DelayFlushes(slow)
			}
			through := c.nodes[c.rand.IntN(len(c.nodes))]
			term, began, written, limit := c.leader().term(), time.Now(), 0, slowWrite(slow)
			longest := time.Duration(0)
			for last := began; time.Since(began) < 4*time.Minute; c.pass(time.Duration(c.rand.Int64N(int64(time.Second)))) {
				o := c.put(c.within(limit), through.name, through.running().Client().KV, "slow", fmt.Sprintf("slow %d", c.clock.Add(1)))
				longest = max(longest, time.Since(last))
				if o.err == nil {
					written, last = written+1, time.Now()
				} else if since := time.Since(last); since > limit {
					t.Errorf("seed %d: each flush takes %v but those of %v: no write for %v of at most %v: %v\n%s", seed, slow, quick, since, limit, o.err, c.state())
					break
				}
			}
			elections := c.leader().term() - term
			t.Logf("seed %d: each flush takes %v but those of %v: %d writes, the longest time without one %v, %d elections", seed, slow, quick, written, longest, elections)
			testenv.True(t, elections <= 1,
				"seed %d: each flush takes %v but those of %v: %d elections while nothing changed", seed, slow, quick, elections)
			c.mendDisks()
		})
	})
}

// Two of five servers are quick, two take seconds for a flush, and the fifth has a stalled disk, so that an election
// needs a slow one. Each of the two quick ones followed the other one last, and the leader is lost by a transfer to a
// slow one: the two do not end one another's elections.
func TestScenarioFormerLeadersElect(t *testing.T) {
	stages(t, 4, 5, nil, func(c *cluster) {
		nodes := c.shuffled()
		first, second, slow, stalled := nodes[0], nodes[1], nodes[2:4], nodes[4]
		for _, n := range []*node{first, second} {
			if !n.leads() {
				testenv.NoError(c, transferBetween(c.within(5*time.Second), c.leader().running(), n.running()))
			}
			c.leader(n)
			c.pass(time.Second)
		}
		stalled.stalls()
		takes := 2*time.Second + time.Duration(c.rand.Int64N(int64(time.Second)))
		for _, n := range slow {
			n.faults.DelayFlushes(takes)
		}
		_ = second.running().replica.transferAt(c.within(8*time.Second), raft.Server{ID: slow[0].running().replica.id, Address: slow[0].running().replica.address})
		began, limit := time.Now(), slowElection(takes)
		err := c.writes(first, limit)
		c.Logf("seed %d: each flush takes %v: a write after %v", c.seed, takes, time.Since(began))
		c.failIf(err != nil, "no write within %v: %v", limit, err)
		c.mendDisks()
	})
}

// slowElection is how long there may be no write, at most, where an election comes first: two candidacies at the
// longest are the greater part of that.
func slowElection(flush time.Duration) time.Duration {
	return slowWrite(flush) + 2*(flushesOfVote*flush+2*(defaultElectionTimeout+flushesOfVote*flush))
}

// All disks become slow at once, and are quick again after ten seconds or two minutes. None was faster meanwhile, so
// the leader keeps its leadership, and a write takes no longer than its flushes.
func TestScenarioSlowBurst(t *testing.T) {
	for _, slow := range []time.Duration{1300, 2000, 3000} {
		for _, lasts := range []time.Duration{10 * time.Second, 2 * time.Minute} {
			slow := slow * time.Millisecond
			t.Run(fmt.Sprintf("%v for %v", slow, lasts), func(t *testing.T) {
				seeds(t, 2, func(t *testing.T, seed uint64) {
					scenario(t, seed, 3+2*int(seed%2), func(c *cluster) {
						through := c.nodes[c.rand.IntN(len(c.nodes))]
						busy := c.rand.IntN(2) == 0 // then the writes wait for one another as well
						if busy {
							w := c.work(2)
							defer w.stop()
						}
						began, last, written, longest := time.Now(), time.Now(), 0, time.Duration(0)
						writes := func(until time.Duration) {
							for time.Since(began) < until {
								o := c.put(c.within(time.Minute), through.name, through.running().Client().KV, "slow", fmt.Sprintf("slow %d", c.clock.Add(1)))
								longest = max(longest, time.Since(last))
								if o.err != nil {
									continue
								}
								c.pass(time.Duration(c.rand.Int64N(int64(time.Second))))
								written, last = written+1, time.Now()
							}
						}
						writes(5 * time.Second)
						term := c.leader().term()
						for _, n := range c.nodes {
							n.faults.DelayFlushes(slow)
						}
						writes(5*time.Second + lasts)
						c.mendDisks()
						writes(15*time.Second + lasts)
						elections := c.leader().term() - term
						t.Logf("seed %d: busy %v: %d writes, the longest took %v, %d elections", seed, busy, written, longest, elections)
						if longest > slowWrite(slow) && !busy || elections > 0 {
							t.Errorf("seed %d: a write took %v, of at most %v, and there were %d elections", seed, longest, slowWrite(slow), elections)
						}
					})
				})
			})
		}
	}
}
