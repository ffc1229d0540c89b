// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// Disks that are slow and not stalled, as cheap cards are at times: the leader vanishes, and the two others have to elect one of them.
// An election takes several flushes, one after the other: a candidate that does not wait for them begins it anew for ever.
func TestScenarioSlowDisks(t *testing.T) {
	for _, flush := range []time.Duration{0, 30 * time.Millisecond, 60 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond, 200 * time.Millisecond} {
		t.Run(fmt.Sprint(flush), func(t *testing.T) {
			for seed := uint64(1); seed <= 4; seed++ {
				scenario(t, seed, 3, func(c *cluster) {
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
					if took := time.Since(began); took > 5*time.Second {
						t.Errorf("seed %d: no leader for %v; the term was %d and is %d", seed, took, term, c.others(leader)[0].running().raft.CurrentTerm())
					}
					for _, n := range c.nodes {
						n.faults.DelayFlushes(0)
					}
					c.net.HealAll()
					c.pass(2 * time.Second)
					w.stop()
				})
			}
		})
	}
}
