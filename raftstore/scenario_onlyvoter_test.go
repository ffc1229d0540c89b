// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// The only voter has just got two more voters, and then all disks become slow at once. None is faster, so the leader
// keeps its leadership, as where three have voted for long.
func TestScenarioSlowBurstAfterFirstPromotion(t *testing.T) {
	stages(t, 6, 1, nil, func(c *cluster) {
		c.pass(time.Duration(c.rand.Int64N(int64(10 * time.Second)))) // it rests
		c.join("b", "a")
		c.join("c", "a")
		c.eventually("three vote", time.Minute, func() bool { return c.voters(c.nodes[0]) == 3 })
		c.pass(time.Duration(c.rand.Int64N(int64(time.Second))))
		term := c.leader().term()
		slow := 2*time.Second + time.Duration(c.rand.Int64N(int64(time.Second)))
		for _, n := range c.nodes {
			n.faults.DelayFlushes(slow)
		}
		for began := time.Now(); time.Since(began) < 20*time.Second; c.pass(100 * time.Millisecond) {
			_ = c.put(c.within(10*time.Second), "a", c.nodes[0].running().Client().KV, "slow", fmt.Sprintf("slow %d", c.clock.Add(1)))
		}
		c.mendDisks()
		if now := c.leader().term(); now != term {
			c.Errorf("seed %d: each flush takes %v: term %d became %d\n%s", c.seed, slow, term, now, c.state())
		}
	})
}

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

// The only voter has just got two more, hands over to one of them, and that one vanishes: the successor serves as soon
// as in any cluster of three.
func TestScenarioLeaderLostAfterFirstPromotion(t *testing.T) {
	scenarios(t, 6, 1, func(c *cluster) {
		c.pass(time.Duration(c.rand.Int64N(int64(10 * time.Second)))) // it rests
		b, d := c.join("b", "a"), c.join("c", "a")
		c.eventually("three vote", time.Minute, func() bool { return c.voters(c.nodes[0]) == 3 })
		lost := c.nodes[0]
		if c.rand.IntN(3) > 0 {
			lost = []*node{b, d}[c.rand.IntN(2)]
			testenv.NoError(c, transferBetween(c.within(5*time.Second), c.leader().running(), lost.running()))
			c.leader(lost)
		}
		c.pass(time.Duration(c.rand.Int64N(int64(300 * time.Millisecond))))
		if c.rand.IntN(2) == 0 {
			c.isolate(lost)
		} else {
			go lost.crash()
		}
		gap := c.gap(c.others(lost))
		c.Logf("seed %d: %v", c.seed, gap)
		c.failIf(gap > time.Second, "the store stood still for %v", gap)
		c.pass(time.Second)
		c.net.HealAll()
		if lost.running() == nil {
			lost.start()
		}
		c.ready(lost)
	})
}

// The only voter has just got two more, and its disk stalls alone. Another server leads as soon as where three have
// voted for long.
func TestScenarioLeadersDiskStallsAfterFirstPromotion(t *testing.T) {
	stages(t, 6, 1, nil, func(c *cluster) {
		c.pass(time.Duration(c.rand.Int64N(int64(10 * time.Second))))
		b := c.join("b", "a")
		c.join("c", "a")
		c.eventually("three vote", time.Minute, func() bool { return c.voters(c.nodes[0]) == 3 })
		c.pass(time.Duration(c.rand.Int64N(int64(time.Second))))
		c.nodes[0].stalls()
		began := time.Now()
		err := c.writes(b, 8*time.Second)
		took := time.Since(began)
		c.Logf("seed %d: a write after %v", c.seed, took)
		c.failIf(err != nil || took > 4*time.Second, "no write for %v: %v", took, err)
		c.nodes[0].faults.DelayFlushes(0)
	})
}
