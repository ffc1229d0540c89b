// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// Everything at once: snapshots everywhere with next to nothing left in the logs,
// lost disks, removals, moves, crashes, cuts, and answers that are lost.
func TestScenarioStorm(t *testing.T) {
	changesAddresses(t)
	scenarios(t, 2, 5, func(c *cluster) {
		c.jitter(500*time.Microsecond, 5*time.Millisecond)
		trail := uint64(c.rand.IntN(4))
		c.trail = &trail
		for _, n := range c.nodes {
			n.running().replica.dir.Log.SetTrailing(trail, 0)
		}
		w := c.work(3)
		for round := range 25 {
			c.pass(time.Duration(c.rand.Int64N(int64(time.Second))))
			n := c.shuffled()[0]
			c.storm(n, round)
			if err := n.running().WaitReady(c.within(time.Minute)); err != nil {
				c.Fatalf("seed %d: %v\n%s", c.seed, err, c.state())
			}
		}
		w.stop()
		c.rest(3*time.Minute, 5, names(c.nodes)...)
	})
}

// storm does one thing to a server, or to all.
func (c *cluster) storm(n *node, round int) {
	others := c.others(n)
	moment := func(most time.Duration) { c.pass(time.Duration(c.rand.Int64N(int64(most)))) }
	what := c.rand.IntN(8)
	if what <= 1 || what == 7 { // it takes a majority of those that have a vote now
		c.rest(2*time.Minute, 5, names(c.nodes)...)
	}
	switch what {
	case 0: // loses its disk
		n.crash()
		n.wipe()
		moment(4 * time.Second)
		n.start(hosts(others)...)
	case 1: // is removed, and joins again
		if err := others[0].running().cluster.RemoveMember(c.within(20*time.Second), n.name); err != nil {
			c.Logf("seed %d: remove %s: %v", c.seed, n.name, err)
			return
		}
		n.stop()
		n.wipe()
		n.start(hosts(others)...)
	case 2, 3: // is away while others take snapshots, and may come back elsewhere
		n.crash()
		c.snapshots(others[:2])
		if c.rand.IntN(2) == 0 {
			n.host = fmt.Sprintf("%s%d", n.name, round)
		}
		moment(2 * time.Second)
		n.start()
	case 4: // is cut off
		c.isolate(n)
		moment(5 * time.Second)
		c.snapshots(c.shuffled()[:3])
		c.net.HealAll()
	case 5:
		_ = c.leader().running().cluster.TransferLeadership(c.within(5 * time.Second)) // it may lose it meanwhile
	case 6: // the leader's messages arrive, and answers do not
		leader := c.leader()
		for _, o := range c.others(leader) {
			if c.rand.IntN(2) == 0 {
				c.net.Cut(o.host, leader.host)
			}
		}
		moment(time.Second)
		c.snapshots(c.nodes)
		c.net.HealAll()
	case 7: // two at a time
		for _, o := range c.shuffled()[:2] {
			o.crash()
		}
		moment(time.Second)
		for _, o := range c.nodes {
			if o.running() == nil {
				o.start()
			}
		}
	}
}

// snapshots has servers take snapshots. One that gets one from the leader at that
// moment does not.
func (c *cluster) snapshots(of []*node) {
	for _, n := range of {
		_ = n.running().snapshotter.takeSnapshot()
	}
}

func hosts(nodes []*node) []string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.host)
	}
	return out
}
