// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

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
