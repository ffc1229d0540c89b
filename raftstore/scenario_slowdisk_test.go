// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Disks that are slow and not stalled, as cheap cards are at times: the leader vanishes, and the two others have to
// elect one of them. An election takes several flushes, one after the other: a candidate that does not wait for them
// begins it again for ever.
func TestScenarioSlowDisks(t *testing.T) {
	for _, flush := range []time.Duration{0, 30, 60, 100, 150, 200, 300, 450, 600, 900} {
		flush *= time.Millisecond
		// Until it is missed, and two candidacies: what the candidate writes itself, and then its time, at the longest.
		limit := defaultElectionTimeout*3/2 + 2*(flushesOfVote*flush+2*max(candidateFor*defaultElectionTimeout, defaultElectionTimeout+flushesOfVote*flush))
		t.Run(fmt.Sprint(flush), func(t *testing.T) {
			scenarios(t, 4, 3, func(c *cluster) {
				w := c.work(2)
				c.pass(time.Second)
				for _, n := range c.nodes {
					n.faults.DelayFlushes(flush)
				}
				c.pass(3 * time.Second)
				leader := c.leader()
				term := leader.term()
				c.isolate(leader)
				began := time.Now()
				var next *node
				for next == nil && time.Since(began) < time.Minute {
					time.Sleep(5 * time.Millisecond) // between two looks, in fake time
					for _, o := range c.others(leader) {
						if o.leads() {
							next = o
						}
					}
				}
				took := time.Since(began)
				c.Logf("a leader after %v", took)
				if took > limit {
					c.Errorf("seed %d: no leader for %v of at most %v; the term was %d and is %d", c.seed, took, limit, term, c.others(leader)[0].running().replica.raft.CurrentTerm())
				}
				c.mendDisks()
				c.net.HealAll()
				c.pass(2 * time.Second)
				w.stop()
			})
		})
	}
}

// All disks take two seconds for a flush, and what the servers say to one another 80 ms each way. There are writes all
// the same.
func TestScenarioSlowDisksFar(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		for _, a := range c.nodes {
			for _, b := range c.others(a) {
				c.net.Delay(a.name, b.name, 80*time.Millisecond, time.Millisecond)
			}
		}
		c.pass(10 * time.Second)
		for _, n := range c.nodes {
			n.faults.DelayFlushes(2 * time.Second)
		}
		acked := 0
		for began := time.Now(); time.Since(began) < 5*time.Minute; c.pass(200 * time.Millisecond) {
			if _, err := c.nodes[0].running().Client().KV.Put(c.within(30*time.Second), "k", "v"); err == nil {
				acked++
			}
		}
		testenv.False(t, acked < 20, "%d writes in five minutes", acked)
		c.mendDisks()
	})
}
