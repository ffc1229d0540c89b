// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Everything at once: five servers that crash, are cut off, cannot be called, have slow and full
// disks, take snapshots, hand over, and lose their directories, at random and
// several at a time. What clients and watches saw must hold all the same.
func TestScenarioEverything(t *testing.T) {
	scenarios(t, 4, 5, func(c *cluster) {
		c.jitter(time.Millisecond, 10*time.Millisecond)
		w := c.work(4)
		for range 40 {
			c.pass(time.Duration(c.rand.Int64N(int64(700 * time.Millisecond))))
			c.strike()
		}
		c.calm()
		c.pass(2 * time.Second)
		c.serves(c.nodes...)
		w.stop()
		c.failIf(c.acked() < 50, "only %d writes were acknowledged", c.acked())
	})
}

// strike does something bad to the cluster, or ends it.
func (c *cluster) strike() {
	nodes := c.shuffled()
	n := nodes[0]
	switch c.rand.IntN(15) {
	case 0, 1:
		if n.running() != nil {
			n.crash()
		}
	case 2, 3, 4:
		for _, o := range nodes[:3] {
			if o.running() == nil {
				o.start()
			}
		}
	case 5:
		at := 1 + c.rand.IntN(4)
		c.partition(nodes[:at], nodes[at:])
	case 6:
		c.net.Cut(nodes[0].name, nodes[1].name)
		c.net.Cut(nodes[1].name, nodes[2].name)
	case 7, 8:
		c.net.HealAll()
		c.block.shut.Store(nil)
	case 14:
		c.failCalls(n)
	case 9:
		n.faults.DelayFlushes(time.Duration(c.rand.Int64N(int64(3 * time.Second))))
	case 10:
		if n.running() != nil { // to start, a server has to write
			n.faults.FailWrites(unix.ENOSPC)
		}
	case 11:
		for _, o := range nodes {
			o.mendDisk()
		}
	case 12:
		if s := n.running(); s != nil {
			// Raft never answers if it is shut down while it waits for its disk.
			n.faults.DelayFlushes(0)
			n.faults.FailWrites(nil)
			_ = s.cluster.TransferLeadership(c.within(5 * time.Second)) // it need not lead
		}
	case 13:
		if s := n.running(); s != nil {
			// Not while its disk stalls: who waits for a mutex, as this would for
			// the log's, stops the bubble's time.
			n.faults.DelayFlushes(0)
			n.faults.FailWrites(nil)
			s.replica.dir.Log.SetTrailing(5, 0)
			_ = s.snapshotter.takeSnapshot() // raft may not be able to yet
		}
	}
}

// calm ends whatever strike did.
func (c *cluster) calm() {
	c.net.HealAll()
	c.block.shut.Store(nil)
	for _, n := range c.nodes {
		n.mendDisk()
		if n.running() == nil {
			n.start()
		}
	}
	for _, n := range c.nodes {
		c.ready(n)
	}
}
