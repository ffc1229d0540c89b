// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Who counts for a majority has to store, not only to answer: a server whose disk is stalled answers.

// standby is a server without a vote.
func (c *cluster) standby() *node {
	c.Helper()
	for _, m := range c.leader().running().cluster.Members() {
		if !m.Voter {
			return c.nodes[slices.Index(names(c.nodes), m.Name)]
		}
	}
	c.Fatal("there is no server without a vote")
	return nil
}

// votes says whether a server has a vote, as another one knows.
func (c *cluster) votes(at, n *node) bool {
	return slices.ContainsFunc(at.running().cluster.Members(), func(m Member) bool { return m.Name == n.name && m.Voter })
}

// writes tries to write until it is acknowledged, or some time has passed.
func (c *cluster) writes(n *node, within time.Duration) error {
	var err error
	for began := time.Now(); ; c.pass(50 * time.Millisecond) {
		left := within - time.Since(began)
		if left <= 0 {
			return err
		}
		if _, err = n.running().Client().KV.Put(c.within(left), "writes", fmt.Sprint(time.Now())); err == nil {
			return nil
		}
	}
}

// mendDisks ends all delays of flushes.
func (c *cluster) mendDisks() {
	for _, n := range c.nodes {
		n.faults.DelayFlushes(0)
	}
}

// stalls makes a server's disk stall.
func (n *node) stalls() { n.faults.DelayFlushes(24 * time.Hour) }

// The disk of a voter is stalled, and a client asks for the state of the servers again and again. The survey says so,
// and the vote goes to the stand-by all the same.
func TestScenarioSurveyedStalledVoter(t *testing.T) {
	stages(t, 2, 4, nil, func(c *cluster) {
		leader, stalled := c.leader(), c.voter()
		stalled.stalls()
		said := false
		c.eventually("its vote goes to another one", 3*time.Minute, func() bool {
			c.serves(leader)
			said = slices.ContainsFunc(leader.running().cluster.Survey(c.within(time.Second)), func(m MemberState) bool {
				c.failIf(m.Stalled && m.Name != stalled.name, "the disk of %s is said to be stalled", m.Name)
				return m.Stalled && m.Answers
			})
			c.pass(2 * time.Second)
			return !c.votes(leader, stalled) && c.voters(leader) == 3
		})
		c.failIf(!said, "the survey does not say that its disk is stalled")
		stalled.faults.DelayFlushes(0)
	})
}

// A removal is in the leader's log, and no majority has it. That server is not said to be none.
func TestScenarioRemovalNotCommitted(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		leader := c.leader()
		stalled, victim := c.others(leader)[0], c.others(leader)[1]
		stalled.stalls()
		s := leader.running()
		future := s.replica.raft.RemoveServer(victim.running().replica.id, 0, 0) // as if the disk stalled a moment after it was seen to work
		c.eventually("it is in the log", time.Second, func() bool {
			members, _ := s.replica.dir.Log.Members()
			return len(members.Servers) == 2
		})
		if err := s.cluster.RemoveMember(c.within(3*time.Second), victim.name); err == nil || status.Code(err) == codes.NotFound {
			t.Errorf("a server is said to be removed, or to be none, whose removal may never be: %v", err)
		}
		stalled.faults.DelayFlushes(0)
		testenv.NoError(t, future.Error())
		c.leader(leader, stalled)
		if err := leader.running().cluster.RemoveMember(c.within(3*time.Second), victim.name); status.Code(err) != codes.NotFound {
			t.Errorf("it is removed: %v", err)
		}
	})
}

// allStalled has the disks of all servers stall for a time, or none, and waits until they write again.
func (c *cluster) allStalled(d time.Duration) {
	leader := c.leader()
	if d > 0 {
		for _, n := range c.nodes {
			n.stalls()
		}
		c.tasks.Go(func() { _, _ = leader.running().Client().Put(c.within(4*time.Second), "k", "v") }) // the disks have something to write
		c.pass(d)
		c.mendDisks()
	}
	testenv.NoError(c.T, c.writes(leader, 2*time.Minute))
	c.pass(3 * time.Second)
}
