// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestScenarioClusters(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenarioOf(t, 1, n, func(o *Options) { o.MaxVoters = 7 }, func(c *cluster) {
				w := c.work(3)
				c.pass(2 * time.Second)
				w.stop()
				if c.acked() < 50 {
					t.Errorf("only %d writes were acknowledged", c.acked())
				}
			})
		})
	}
}

// gap is how long it takes until a write through each of the servers succeeds,
// at the most.
func (c *cluster) gap(nodes []*node) time.Duration {
	c.Helper()
	start := time.Now()
	took := make(chan time.Duration, len(nodes))
	for i, n := range nodes {
		go func() {
			ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
			defer cancel()
			o := c.put(ctx, n.name, n.running().Client().KV, "gap", fmt.Sprintf("gap %v %d", start, i))
			if o.err != nil {
				c.Errorf("seed %d: %v", c.seed, o)
			}
			took <- time.Since(start)
		}()
	}
	var longest time.Duration
	for range nodes {
		longest = max(longest, <-took)
	}
	return longest
}

// The leader crashes. Its successor serves within 600 ms.
func TestScenarioLeaderCrash(t *testing.T) {
	const limit = 600 * time.Millisecond
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var gaps []time.Duration
			seeds(t, 5, func(t *testing.T, seed uint64) {
				scenario(t, seed, n, func(c *cluster) {
					w := c.work(2)
					for range 6 {
						c.pass(time.Duration(c.rand.Int64N(int64(time.Second))))
						leader := c.leader()
						go leader.crash()
						gap := c.gap(c.others(leader))
						gaps = append(gaps, gap)
						if gap > limit {
							t.Errorf("seed %d: the store stood still for %v", seed, gap)
						}
						c.eventually("the crashed server is down", time.Minute, func() bool { return leader.running() == nil })
						c.pass(2 * time.Second)
						leader.start()
						c.ready(leader)
					}
					w.stop()
				})
			})
			slices.Sort(gaps)
			if len(gaps) > 0 {
				t.Logf("leader's crash to the last server's first write: p50 %v, max %v of %d", gaps[len(gaps)/2], gaps[len(gaps)-1], len(gaps))
			}
		})
	}
}
