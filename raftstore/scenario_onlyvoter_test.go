// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Of three servers one votes, and its disk stalls. No other could lead, so it goes on with its heartbeats: reads
// through the others work all the while.
func TestScenarioOnlyVotersDiskStalls(t *testing.T) {
	stages(t, 6, 1, func(o *Options) { o.MaxVoters = 1 }, func(c *cluster) {
		b := c.join("b", "a")
		c.join("c", "a")
		c.ready(b)
		c.pass(5*time.Second + time.Duration(c.rand.Int64N(int64(10*time.Second))))
		c.nodes[0].faults.DelayFlushes(8 * time.Second)
		go func() { _, _ = c.nodes[0].running().Client().KV.Put(c.within(time.Minute), "k", "v") }()
		longest, last := time.Duration(0), time.Now()
		for began := time.Now(); time.Since(began) < 7*time.Second; c.pass(20 * time.Millisecond) {
			if _, err := b.running().api.Range(c.within(5*time.Second), &pb.RangeRequest{Key: []byte("k")}); err == nil {
				longest, last = max(longest, time.Since(last)), time.Now()
			}
		}
		longest = max(longest, time.Since(last))
		c.nodes[0].faults.DelayFlushes(0)
		c.Logf("seed %d: the longest time without a read %v", c.seed, longest)
		c.failIf(longest > 200*time.Millisecond, "no read through a server without a vote for %v", longest)
	})
}
