// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// The disk of a server is stalled while the leader changes, and the server is taken out meanwhile. When its disk works
// again it learns of that.
func TestScenarioRemovedWhileStalled(t *testing.T) {
	stages(t, 6, 5, nil, func(c *cluster) {
		victim := c.shuffled()[0]
		led := victim.leads() // with nothing to write it leads on
		victim.stalls()
		if c.rand.IntN(2) == 0 {
			c.pass(time.Duration(c.rand.Int64N(int64(20 * time.Second))))
		}
		well := c.others(victim)
		if c.rand.IntN(4) > 0 || led {
			testenv.NoError(c, c.writes(well[0], 20*time.Second))
		}
		for range c.rand.IntN(3) {
			_ = c.leader(well...).running().cluster.TransferLeadership(c.within(20 * time.Second))
		}
		if err := well[c.rand.IntN(4)].running().cluster.RemoveMember(c.within(30*time.Second), victim.name); err != nil {
			c.Fatalf("seed %d: %v\n%s", c.seed, err, c.state())
		}
		c.pass(time.Duration(c.rand.Int64N(int64(40 * time.Second))))
		victim.faults.DelayFlushes(0)
		// A request of the leader's that the stall held up may still time out, which takes 30 s, with heartbeats
		// until then. A follower then misses the leader within three of its time-outs, which follow the slow disk.
		c.eventually("it knows that it was removed", 70*time.Second, victim.running().Health().Removed)
	})
}

// Leadership is transferred while the disk of a voter is stalled and those of the others are slow.
func TestScenarioTransferWithSlowDisks(t *testing.T) {
	stages(t, 6, 5, nil, func(c *cluster) {
		leader := c.leader()
		stalled := c.others(leader)[c.rand.IntN(4)]
		for _, n := range c.nodes {
			n.faults.DelayFlushes(time.Duration(c.rand.Int64N(int64(300 * time.Millisecond))))
		}
		stalled.stalls()
		w := c.work(2, leader)
		c.pass(time.Duration(c.rand.Int64N(int64(15 * time.Second))))
		began := time.Now()
		var err error
		for leader.leads() && time.Since(began) < 20*time.Second {
			err = leader.running().cluster.TransferLeadership(c.within(20 * time.Second))
		}
		c.failIf(leader.leads(), "after 20 s it leads still: %v", err)
		now := c.leader(c.others(stalled)...)
		c.Logf("seed %d: another one leads after %v", c.seed, time.Since(began))
		if err := c.writes(now, 10*time.Second); err != nil {
			c.Errorf("seed %d: %v", c.seed, err)
		}
		c.mendDisks()
		w.stop()
	})
}
