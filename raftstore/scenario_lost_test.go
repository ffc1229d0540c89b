// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Scenarios in which a follower has more than its leader knows, because its
// answers were lost, while snapshots take the place of the logs that would show it.

// keep sets how many entries that a snapshot covers stay in the servers' logs.
func (c *cluster) keep(entries uint64) {
	c.trail = &entries
	for _, n := range c.nodes {
		if s := n.running(); s != nil {
			s.replica.dir.Log.SetTrailing(entries, 0)
		}
	}
}

// lag gives a follower a slow disk and more to write than it comes to. When it has
// answered twice, the leader sends messages of many entries; then its answers are
// lost, and it stores what is on the way to it.
func (c *cluster) lag(leader, follower *node, meanwhile func()) {
	c.Helper()
	last := follower.running().replica.raft.LastIndex
	before := last()
	follower.faults.DelayFlushes(5 * time.Second)
	c.fill(leader, 50)
	meanwhile()
	c.fillWith(leader, 150, noise(20<<10)) // more than a message takes
	c.eventually("the follower has stored two messages", 20*time.Second, func() bool { return last() >= before+2 })
	c.pass(100 * time.Millisecond) // the answer to the second one arrives, and the third message
	c.net.Cut(follower.name, leader.name)
	for _, other := range c.others(leader) { // or a server leads instead that the follower reaches
		if other != follower {
			c.cutLink(follower, other)
		}
	}
	c.pass(6 * time.Second)
	follower.faults.DelayFlushes(0)
	c.pass(40 * time.Second) // or the answers would only be late
	c.endIf(last() < before+40, "the follower had entries up to %d, and has those up to %d", before, last())
}

// A follower compacts its log beyond what its leader knows that it has. The leader
// needs it: the third server is dead.
func TestScenarioStrandedFollower(t *testing.T) {
	scenarios(t, 2, 3, func(c *cluster) {
		c.keep(0)
		leader := c.leader()
		follower, third := c.others(leader)[0], c.others(leader)[1]
		c.fill(leader, 20)
		c.compactLog(leader)
		c.lag(leader, follower, func() {})
		c.compactLog(follower)
		lacks := leader.running().replica.raft.LastIndex() - follower.running().replica.raft.LastIndex()
		if first, _ := follower.running().replica.dir.Log.FirstIndex(); first != 0 || lacks == 0 {
			c.Fatalf("seed %d: the follower's log begins at %d, and it lacks %d entries", c.seed, first, lacks)
		}
		third.crash()
		c.net.HealAll()
		c.live([]*node{leader, follower})
		c.serves(leader, follower)
	})
}

// A follower gets thousands of entries and none of its answers arrive. Both servers
// compact; then the third one dies. No client writes, and the two can work again.
func TestScenarioBacklog(t *testing.T) {
	scenarios(t, 2, 3, func(c *cluster) {
		c.keep(c.rand.Uint64N(200))
		leader := c.leader()
		follower, third := c.others(leader)[0], c.others(leader)[1]
		c.fill(leader, 100)
		c.compactLog(leader)
		c.net.Cut(follower.name, leader.name)
		c.fill(leader, 3000)
		c.pass(20 * time.Second) // messages without answers are sent again and again
		if c.rand.IntN(2) == 0 {
			c.compactLog(leader)
		}
		c.compactLog(follower)
		third.crash()
		c.net.HealAll()
		c.live([]*node{leader, follower})
		c.serves(leader, follower)
	})
}

// A snapshot that was begun before the members changed reaches a follower that has
// stored the change. It must go by five members, not by three: else it and the
// third server elect one of their own.
func TestScenarioSnapshotOfOldMembers(t *testing.T) {
	seeds(t, 2, func(t *testing.T, seed uint64) { snapshotOfOldMembers(t, seed, 0) })
}

// The follower's disk is stalled when the snapshot comes, so that raft does not say in time whether it has the
// snapshot's last entry.
func TestScenarioSnapshotOfOldMembersAtStalledDisk(t *testing.T) {
	seeds(t, 2, func(t *testing.T, seed uint64) { snapshotOfOldMembers(t, seed, 27*time.Second) })
}

func snapshotOfOldMembers(t *testing.T, seed uint64, stalled time.Duration) {
	scenario(t, seed, 3, func(c *cluster) {
		c.keep(0)
		leader := c.leader()
		follower, third := c.others(leader)[0], c.others(leader)[1]
		var d, e *node
		taken := make(chan error, 1)
		end := uint64(0)
		c.lag(leader, follower, func() {
			c.fillWith(leader, 4, noise(20<<10)) // the first three end the second message, the fourth begins the third one
			leader.faults.DelaySnapshots(20 * time.Second)
			end = leader.running().replica.raft.AppliedIndex()
			c.tasks.Go(func() { taken <- leader.running().snapshotter.takeSnapshot() })
			c.pass(10 * time.Millisecond)
			d, e = c.join("d", leader.name), c.join("e", leader.name)
			c.eventually("five voters", 5*time.Second, func() bool { return c.voters(leader) == 5 })
		})
		testenv.NoError(t, <-taken)
		leader.faults.DelaySnapshots(0)
		known, _ := peersOf(leader.running()).peers.Stored(follower.running().replica.id, leader.term())
		if last := follower.running().replica.raft.LastIndex(); known >= end || last <= end || c.voters(follower) != 5 {
			t.Fatalf("seed %d: the follower has entries up to %d, the leader knows of those up to %d, the snapshot ends at %d\n%s", seed, last, known, end, c.state())
		}
		if stalled > 0 {
			follower.stalls() // the leader's first message has raft write its term
			c.net.HealAll()
			c.pass(stalled)
			follower.faults.DelayFlushes(0)
		}
		c.net.HealAll()
		c.live(c.nodes)
		c.partition([]*node{follower, third}, []*node{leader, d, e})
		c.pass(5 * time.Second)
		c.refuses(follower)
		c.serves(leader)
	})
}
