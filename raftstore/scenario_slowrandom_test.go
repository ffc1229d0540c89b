// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// slowWrite is how long a write may take, at most, where each flush takes that long: its own two flushes, those of two entries before it, and an election, of
// which a candidacy at the longest is the greater part.
func slowWrite(flush time.Duration) time.Duration {
	return time.Second + 4*flush + 2*(flushesOfVote*flush+2*max(candidateFor*defaultElectionTimeout, defaultElectionTimeout+flushesOfVote*flush))
}

// All disks, or those of a majority, are slow for minutes. Nobody is faster than the leader, so it keeps its place, and writes go on.
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
			for last := began; time.Since(began) < 4*time.Minute; c.pass(time.Duration(c.rand.Int64N(int64(time.Second)))) {
				o := c.put(c.within(limit), through.name, through.running().Client().KV, "slow", fmt.Sprintf("slow %d", c.clock.Add(1)))
				if o.err == nil {
					written, last = written+1, time.Now()
				} else if since := time.Since(last); since > limit {
					t.Errorf("seed %d: each flush takes %v but those of %v: no write for %v of at most %v: %v\n%s", seed, slow, quick, since, limit, o.err, c.state())
					break
				}
			}
			elections := c.leader().term() - term
			t.Logf("seed %d: each flush takes %v but those of %v: %d writes, %d elections", seed, slow, quick, written, elections)
			if elections > 4 {
				t.Errorf("seed %d: each flush takes %v but those of %v: %d elections while nothing changed", seed, slow, quick, elections)
			}
			for _, n := range c.nodes {
				n.faults.DelayFlushes(0)
			}
		})
	})
}
