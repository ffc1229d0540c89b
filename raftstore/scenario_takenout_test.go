// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"
)

// There is a leader that a server does not hear, and the only one that it reaches has just joined: that one knows who
// leads, and no members yet, since its disk is stalled. The server does not take itself for one that was removed.
func TestScenarioBesideOneThatJoins(t *testing.T) {
	stages(t, 3, 3, func(o *Options) { o.Others = func() []string { return []string{"d"} } }, func(c *cluster) {
		away := c.others(c.leader())[c.rand.IntN(2)]
		c.isolate(away)
		d := c.join("d", c.others(away)[0].name)
		d.faults.DelayFlushes(time.Hour)
		for range 30 {
			c.pass(time.Second)
			c.endIf(away.running().Health().Removed(), "it takes itself for one that was taken out")
		}
		c.failIf(d.running().Health().OtherLeader() == "", "it does not hear the leader")
		d.faults.DelayFlushes(0)
	})
}

// A server that was taken in and has none of the log yet reaches only one whose disk is stalled, and that does not know
// of it. It does not take itself for one that was removed.
func TestScenarioEmptyLogBesideAStalledServer(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		leader := c.leader()
		stalled := c.others(leader)[0]
		stalled.faults.DelayFlushes(time.Hour)
		c.pass(5 * time.Second)
		late := c.add("late")
		for _, n := range c.others(stalled, late) {
			c.cutLink(n, late)
		}
		late.start(stalled.name)
		peersOf(late.running()).membership.joined.Store(true) // the leader's answer came, and its first entry did not
		for range 20 {
			c.pass(time.Second)
			if late.running().Health().Removed() {
				t.Fatalf("it takes itself for one that was removed\n%s", c.state())
			}
		}
		stalled.faults.DelayFlushes(0)
	})
}
