// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// join starts another server, which joins through one that runs.
func (c *cluster) join(name, through string) *node {
	c.Helper()
	n := c.add(name)
	for _, o := range c.nodes {
		if o != n {
			c.net.Delay(o.name, name, 200*time.Microsecond, 300*time.Microsecond)
			c.net.Delay(name, o.name, 200*time.Microsecond, 300*time.Microsecond)
		}
	}
	n.start(through)
	return n
}

// wipe empties a stopped server's directory.
func (n *node) wipe() {
	testenv.NoError(n.c, os.RemoveAll(n.dir))
}

// rest waits for the members to be those, with so many votes.
func (c *cluster) rest(within time.Duration, voters int, members ...string) {
	c.Helper()
	slices.Sort(members)
	c.eventually("the members have settled", within, func() bool {
		for _, n := range c.nodes {
			if !n.leads() {
				continue
			}
			var have []string
			for _, m := range n.running().cluster.Members() {
				have = append(have, m.Name)
			}
			slices.Sort(have)
			return slices.Equal(have, members) && c.voters(n) == voters
		}
		return false
	})
}

// A voter is gone and an operator does not wait for the minute. What would make the
// number of voters even, or nothing better, is refused.
func TestScenarioPromote(t *testing.T) {
	scenarios(t, 2, 4, func(c *cluster) {
		c.rest(30*time.Second, 3, names(c.nodes)...)
		leader := c.leader()
		var standby *node
		for _, m := range leader.running().cluster.Members() {
			if !m.Voter {
				standby = c.nodes[slices.Index(names(c.nodes), m.Name)]
			}
		}
		lost := c.voter()
		promote := func(name string) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return standby.running().cluster.PromoteMember(ctx, name) // it is forwarded to the leader
		}
		for name, want := range map[string]codes.Code{standby.name: codes.FailedPrecondition, lost.name: codes.FailedPrecondition, "nobody": codes.NotFound} {
			testenv.Equal(c, status.Code(promote(name)), want, "promoting %s while all is well:", name)
		}
		lost.crash()
		c.pass(2 * healthyWithin)
		for _, m := range leader.running().cluster.Survey(context.Background()) {
			if m.Answers != (m.Name != lost.name) || m.Answers && m.Version != "scenario" || m.Lag > caughtUpWithin {
				c.Errorf("survey says %+v", m)
			}
		}
		testenv.NoError(c, promote(standby.name))
		c.eventually("it has the vote of the lost one", 10*time.Second, func() bool {
			var voters []string
			for _, m := range leader.running().cluster.Members() {
				if m.Voter {
					voters = append(voters, m.Name)
				}
			}
			return len(voters) == 3 && !slices.Contains(voters, lost.name)
		})
		lost.start()
		c.ready(lost)
	})
}

// voter is a server that votes and does not lead.
func (c *cluster) voter() *node {
	for _, m := range c.leader().running().cluster.Members() {
		if m.Voter && !m.Leader {
			return c.nodes[slices.Index(names(c.nodes), m.Name)]
		}
	}
	c.Fatal("there is no other voter")
	return nil
}

// The only voter of a cluster cannot be taken out, nor who is none.
func TestScenarioRemovalRefused(t *testing.T) {
	scenario(t, 1, 1, func(c *cluster) {
		for _, name := range []string{"a", "nobody"} {
			testenv.Fails(t, c.nodes[0].running().cluster.RemoveMember(c.within(time.Second), name), "%s was removed", name)
		}
		c.serves(c.nodes[0])
	})
}

// A server of another cluster is refused. A directory of another cluster, too.
func TestScenarioWrongCluster(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		w := c.work(2)
		foreign := c.add("x")
		foreign.gone = true
		o := foreign.options("a")
		o.ClusterID = "another"
		s := testenv.Must(Open(c.ctx, o))(t)
		testenv.Fails(t, s.WaitReady(c.within(10*time.Second)), "a server of another cluster is ready")
		testenv.Check(t, s.Close(context.Background()))
		testenv.Equal(t, len(c.nodes[0].running().cluster.Members()), 3, "members:")
		o = foreign.options("a")
		mismatch := (*MismatchError)(nil)
		if _, err := Open(c.ctx, o); !errors.As(err, &mismatch) {
			t.Errorf("a directory of another cluster was opened: %v", err)
		}
		w.stop()
	})
}

// Members come, go, crash, lose their disks and are cut off, at random, and
// always a majority of the voters is well.
func TestScenarioRandomMembers(t *testing.T) {
	scenarios(t, 2, 5, func(c *cluster) {
		c.jitter(500*time.Microsecond, 5*time.Millisecond)
		w := c.work(2)
		for range 10 {
			c.pass(time.Duration(c.rand.Int64N(int64(2 * time.Second))))
			n := c.shuffled()[0]
			others := c.others(n)
			switch c.rand.IntN(5) {
			case 0: // lost its disk
				n.crash()
				n.wipe()
				c.pass(time.Duration(c.rand.Int64N(int64(4 * time.Second))))
				n.start(names(others)...)
			case 1: // taken out, and in again
				if err := others[0].running().cluster.RemoveMember(c.within(20*time.Second), n.name); err != nil {
					c.Errorf("seed %d: remove %s: %v\n%s", c.seed, n.name, err, c.state())
					return
				}
				n.stop()
				n.wipe()
				n.start(names(others)...)
			case 2:
				n.crash()
				c.pass(time.Duration(c.rand.Int64N(int64(2 * time.Second))))
				n.start()
			case 3:
				c.isolate(n)
				c.pass(time.Duration(c.rand.Int64N(int64(5 * time.Second))))
				c.net.HealAll()
			case 4:
				_ = c.leader().running().cluster.TransferLeadership(c.within(5 * time.Second))
			}
			c.ready(n)
			c.rest(time.Minute, 5, names(c.nodes)...)
		}
		w.stop()
	})
}

// A cluster of one server, which had no peers, gets an address and others.
// Then it is one again, and forgets how to talk.
func TestScenarioOneToThreeAndBack(t *testing.T) {
	scenario(t, 1, 1, func(c *cluster) {
		a := c.nodes[0]
		alone := func() {
			a.stop()
			o := a.options()
			testenv.NoError(t, errors.Join(o.Network.Listener.Close(), a.open(o, true)))
			c.ready(a)
			c.serves(a)
			a.stop()
		}
		alone()
		a.start()
		c.ready(a)
		b, d := c.join("b", "a"), c.join("d", "a")
		c.rest(20*time.Second, 3, "a", "b", "d")
		c.serves(c.nodes...)
		for _, n := range []*node{b, d} {
			testenv.NoError(t, a.running().cluster.RemoveMember(c.within(20*time.Second), n.name))
			n.stop()
			n.gone = true
		}
		c.rest(20*time.Second, 1, "a")
		c.serves(a)
		alone()
		a.start()
		c.ready(a)
	})
}

// Stand-bys whose disks are full get no votes: neither a pair of them, nor one where another has room. They get them
// when there is room.
func TestScenarioFullStandbys(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		leader := c.leader()
		for _, name := range []string{"x", "y"} {
			n := c.add(name)
			n.faults.SeemFull(true)
			n.start(leader.name)
		}
		c.pass(3 * time.Minute)
		c.failIf(c.voters(leader) != 3, "%d voters beside full stand-bys, want 3", c.voters(leader))
		full, lost := c.nodes[3], c.others(leader)[0]
		c.nodes[4].faults.SeemFull(false)
		lost.crash()
		c.pass(replaceAfter + 20*time.Second)
		c.failIf(c.votes(leader, full) || !c.votes(leader, c.nodes[4]), "the vote of a lost server went to the full stand-by: %s", c.state())
		c.serves(leader)
		full.faults.SeemFull(false)
		lost.start()
		c.eventually("five voters", time.Minute, func() bool { return c.voters(leader) == 5 })
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
		peersOf(late.running()).membership.hasJoined.Store(true) // the leader's answer came, and its first entry did not
		for range 20 {
			c.pass(time.Second)
			if late.running().Health().Removed() {
				t.Fatalf("it takes itself for one that was removed\n%s", c.state())
			}
		}
		stalled.faults.DelayFlushes(0)
	})
}
