// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"
)

// A server is removed while the disk of another one is stalled, which counts it still. It believes those who know more.
func TestScenarioRemovedBesideAStalledServer(t *testing.T) {
	stages(t, 3, 5, nil, func(c *cluster) {
		stalled := c.nodes[0] // it is the first that is asked
		victim := c.nodes[1+c.rand.IntN(4)]
		if c.leader() == stalled {
			if err := stalled.running().cluster.TransferLeadership(c.within(20 * time.Second)); err != nil {
				c.Fatalf("seed %d: %v\n%s", c.seed, err, c.state())
			}
		}
		c.leader(c.nodes[1:]...)
		stalled.faults.DelayFlushes(time.Hour)
		c.serves(c.nodes[1:]...)
		if err := c.leader(c.nodes[1:]...).running().cluster.RemoveMember(c.within(20*time.Second), victim.name); err != nil {
			c.Fatalf("seed %d: %v\n%s", c.seed, err, c.state())
		}
		c.eventually("the removed server knows it", time.Minute, victim.running().Health().Removed)
		leader := c.leader(c.others(stalled, victim)...)
		if got := victim.running().Health().OtherLeader(); got != leader.name {
			c.Errorf("seed %d: it takes %q for the leader, which is %s", c.seed, got, leader.name)
		}
		stalled.faults.DelayFlushes(0)
	})
}

// There is no leader any more, and the only other server that answers is one whose disk is stalled: it does not know
// yet of the newest member, nor that none leads. That one does not take itself for one that was removed.
func TestScenarioLeaderlessBesideAStalledServer(t *testing.T) {
	stages(t, 3, 3, nil, func(c *cluster) {
		leader := c.leader()
		stalled := c.others(leader)[c.rand.IntN(2)]
		stalled.faults.DelayFlushes(time.Hour)
		c.pass(5 * time.Second)
		newest := c.join("d", leader.name)
		c.ready(newest)
		c.serves(newest)
		for _, n := range c.others(stalled, newest) {
			n.crash()
		}
		for range 60 {
			c.pass(time.Second)
			c.endIf(newest.running().Health().Removed(), "it takes itself for one that was taken out")
		}
		stalled.faults.DelayFlushes(0)
	})
}

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

// A server that the cluster does not take in yet was not taken out.
func TestScenarioNotTakenInYet(t *testing.T) {
	stage(t, 1, 2, func(o *Options) { o.MaxMembers = 2 }, func(c *cluster) {
		late := c.join("late", c.leader().name)
		for range 20 {
			c.pass(time.Second)
			if late.running().Health().Removed() {
				t.Fatalf("it takes itself for one that was taken out\n%s", c.state())
			}
		}
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
