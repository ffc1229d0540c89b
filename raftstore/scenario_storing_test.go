// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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
