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

func (c *cluster) mendDisks() {
	for _, n := range c.nodes {
		n.mendDisk()
	}
}

// mendDisk ends what is wrong with a server's disk.
func (n *node) mendDisk() {
	n.faults.DelayFlushes(0)
	n.faults.DelaySnapshots(0)
	n.faults.SeemFull(false)
	n.faults.FailWrites(nil)
}

// stalls makes a server's disk stall.
func (n *node) stalls() { n.faults.DelayFlushes(24 * time.Hour) }

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
