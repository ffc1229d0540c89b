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

// The disk of the stand-by is stalled, and in a quiet cluster that shows nowhere. A voter is lost: the stand-by gets no
// vote until its disk works. The two voters that are left work all the while.
func TestScenarioStalledStandby(t *testing.T) {
	stages(t, 3, 4, nil, func(c *cluster) {
		leader, standby := c.leader(), c.standby()
		lost := c.others(leader, standby)[c.rand.IntN(2)]
		c.pass(10 * time.Second)
		standby.stalls()
		c.pass(5 * time.Second)
		lost.crash()
		well := c.others(standby, lost)
		c.pass(time.Duration(40+c.rand.IntN(40)) * time.Second) // nothing is written
		if err := leader.running().cluster.PromoteMember(c.within(10*time.Second), standby.name); status.Code(err) != codes.FailedPrecondition {
			c.Errorf("seed %d: a vote for a server whose disk is stalled: %v", c.seed, err)
		}
		for i := range 20 {
			if err := c.writes(well[i%2], 5*time.Second); err != nil {
				c.Fatalf("seed %d: %v\n%s", c.seed, err, c.state())
			}
			c.pass(5 * time.Second)
		}
		c.failIf(c.votes(leader, standby), "it has a vote")
		standby.faults.DelayFlushes(0)
		c.eventually("it has the vote of the lost one", 3*time.Minute, func() bool { return c.votes(leader, standby) && !c.votes(leader, lost) })
	})
}

// The disk of a voter is stalled. None of the two others can be taken out, be the stalled disk known already or not.
func TestScenarioRemovalBesideStalledVoter(t *testing.T) {
	stages(t, 3, 3, nil, func(c *cluster) {
		leader := c.leader()
		stalled, well := c.others(leader)[0], c.others(leader)[1]
		c.pass(10 * time.Second)
		stalled.stalls()
		if c.seed%2 == 0 {
			for range 20 {
				c.serves(leader)
				c.pass(time.Second)
			}
		}
		for _, n := range []*node{well, leader} {
			if err := leader.running().cluster.RemoveMember(c.within(20*time.Second), n.name); status.Code(err) != codes.FailedPrecondition {
				c.Errorf("seed %d: removing %s: %v", c.seed, n.name, err)
			}
		}
		c.pass(20 * time.Second)
		c.serves(leader, well)
		testenv.Check(c, leader.running().cluster.RemoveMember(c.within(20*time.Second), stalled.name), "seed %d: removing the one whose disk is stalled", c.seed)
		c.serves(leader, well)
		stalled.faults.DelayFlushes(0)
	})
}

// The leader's disk is full, and that of another voter is stalled. The one that has room and stores leads.
func TestScenarioFullLeaderBesideStalled(t *testing.T) {
	for _, n := range []int{3, 5} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprint(n, " ", known), func(t *testing.T) {
				stages(t, 2, n, nil, func(c *cluster) {
					leader := c.leader()
					others := c.others(leader)
					stalled := others[c.rand.IntN(n-1)]
					c.pass(5 * time.Second)
					stalled.stalls()
					if known {
						c.serves(leader)
					}
					leader.faults.SeemFull(true)
					for _, o := range c.others(leader, stalled) {
						if err := c.writes(o, 15*time.Second); err != nil {
							c.Errorf("seed %d: %s is full, %s is stalled, and there is no write at %s: %v\n%s", c.seed, leader.name, stalled.name, o.name, err, c.state())
						}
					}
					leader.faults.SeemFull(false)
					stalled.faults.DelayFlushes(0)
				})
			})
		}
	}
}

// The leader's disk is full, and one of the two others is taken out. The one that is left leads: its vote, which makes
// their number even, is not taken before.
func TestScenarioFullLeaderAndOneOther(t *testing.T) {
	stages(t, 2, 3, nil, func(c *cluster) {
		leader := c.leader()
		out, left := c.others(leader)[0], c.others(leader)[1]
		leader.faults.SeemFull(true)
		testenv.NoError(c, leader.running().cluster.RemoveMember(c.within(10*time.Second), out.name))
		c.pass(time.Minute)
		if err := c.writes(left, 15*time.Second); err != nil {
			c.Errorf("seed %d: %v\n%s", c.seed, err, c.state())
		}
		leader.faults.SeemFull(false)
	})
}

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

// The disk of a follower is stalled, and nothing shows it. Leadership goes to another one at once.
func TestScenarioTransferBesideStalledVoter(t *testing.T) {
	stages(t, 3, 3, nil, func(c *cluster) {
		leader := c.leader()
		stalled := c.others(leader)[c.rand.IntN(2)]
		c.pass(5 * time.Second)
		stalled.stalls()
		if err := transferBetween(c.within(10*time.Second), leader.running(), stalled.running()); status.Code(err) != codes.Unavailable {
			c.Errorf("seed %d: leadership for a server whose disk is stalled: %v", c.seed, err)
		}
		began := time.Now()
		c.failIf(!leader.running().cluster.TransferBeforeStop(), "it could not hand over")
		if took := time.Since(began); took > transferWithin {
			c.Errorf("seed %d: it took %v", c.seed, took)
		}
		c.serves(c.others(leader, stalled)...)
		stalled.faults.DelayFlushes(0)
	})
}

// A server has just been elected, and what one of the others confirms is on its way. The third one, which was the
// leader, may be removed.
func TestScenarioRemovalAfterElection(t *testing.T) {
	stages(t, 3, 3, nil, func(c *cluster) {
		former := c.leader()
		next, far := c.others(former)[0], c.others(former)[1]
		c.pass(5 * time.Second)
		c.net.Delay(far.name, next.name, 100*time.Millisecond, 0)
		testenv.NoError(c, transferBetween(c.within(10*time.Second), former.running(), next.running()))
		c.eventually("it leads", time.Second, next.leads)
		if err := next.running().cluster.RemoveMember(c.within(10*time.Second), former.name); err != nil {
			c.Errorf("seed %d: %v\n%s", c.seed, err, c.state())
		}
	})
}

// How many entries a cluster writes in which a stand-by could be promoted, and its disk takes too long for it: one a
// minute.
func TestScenarioProbesPause(t *testing.T) {
	stage(t, 1, 4, nil, func(c *cluster) {
		leader, standby := c.leader(), c.standby()
		lost := c.others(leader, standby)[0]
		standby.faults.DelayFlushes(storesWithin + time.Second)
		lost.crash()
		c.pass(2 * time.Minute)
		before := leader.running().replica.raft.LastIndex()
		c.pass(10 * time.Minute)
		if written := leader.running().replica.raft.LastIndex() - before; written > 12 || written < 5 {
			t.Errorf("%d entries in ten minutes", written)
		}
		testenv.False(t, c.votes(leader, standby), "it has a vote")
		standby.faults.DelayFlushes(0)
	})
}

// How many entries a cluster writes in which votes could change, and the voters' disks take too long for it: one a
// minute.
func TestScenarioVotersProbesPause(t *testing.T) {
	for what, begin := range map[string]func(c *cluster, leader, standby *node){
		"a vote for the stand-by": func(c *cluster, leader, standby *node) {
			voters := c.others(leader, standby)
			voters[0].faults.DelayFlushes(storesWithin + time.Second)
			voters[1].crash()
		},
		"the removal of a lost directory": func(c *cluster, leader, standby *node) {
			standby.crash()
			standby.wipe()
			standby.start(leader.name)
			c.eventually("it has joined as another member", 2*time.Second, peersOf(standby.running()).membership.joined.Load)
			for _, n := range c.others(leader, standby) {
				n.faults.DelayFlushes(storesWithin + time.Second)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			stage(t, 1, 4, nil, func(c *cluster) {
				leader, standby := c.leader(), c.standby()
				begin(c, leader, standby)
				c.pass(2 * time.Minute)
				votes := c.state()
				before := leader.running().replica.raft.LastIndex()
				c.pass(10 * time.Minute)
				if written := leader.running().replica.raft.LastIndex() - before; written > 12 || written < 5 {
					t.Errorf("%d entries in ten minutes\n%s", written, votes)
				}
				c.mendDisks()
			})
		})
	}
}

// A cluster at rest writes nothing to find out who stores.
func TestScenarioNothingIsProbedAtRest(t *testing.T) {
	stage(t, 1, 4, nil, func(c *cluster) {
		leader := c.leader()
		c.pass(11 * time.Minute) // the compactor has nothing to do any more
		before := leader.running().replica.raft.LastIndex()
		c.pass(5 * time.Minute)
		if now := leader.running().replica.raft.LastIndex(); now != before {
			t.Errorf("%d entries in five minutes", now-before)
		}
	})
}

// The disks of all servers are full. None could lead better, so nothing is written to find out who stores.
func TestScenarioAllFullWriteNothing(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		c.pass(11 * time.Minute) // the compactor has nothing to do any more
		for _, n := range c.nodes {
			n.faults.SeemFull(true)
		}
		c.pass(time.Minute)
		before := c.leader().running().replica.raft.LastIndex()
		c.pass(10 * time.Minute)
		if written := c.leader().running().replica.raft.LastIndex() - before; written > 0 {
			t.Errorf("%d entries in ten minutes", written)
		}
		for _, n := range c.nodes {
			n.faults.SeemFull(false)
		}
	})
}
