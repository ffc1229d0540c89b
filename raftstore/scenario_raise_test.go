// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// joinOlder asks a server to admit one whose program knows only the first level.
func joinOlder(ctx context.Context, n *node, name string) error {
	s := n.running()
	if s == nil {
		return ErrClosed
	}
	address := withLevel(raftAddress(raft.ServerID(name+".OLD"), name), 1)
	_, err := peersOf(s).membership.serveJoin(ctx, joinCall{ID: name + ".OLD", Address: string(address)})
	return err
}

// readable fails unless all members of a server's newest configuration know the level that it has applied.
func (c *cluster) readable(n *node) {
	c.Helper()
	s := n.running()
	if s == nil {
		return
	}
	at := s.replica.fsm.view().Level()
	members, _ := s.replica.dir.Log.Members()
	for _, m := range members.Servers {
		c.endIf(levelOf(m.Address) < at, "%s has applied level %d and counts the member %s", n.name, at, m.Address)
	}
}

// A request to raise the level that was given up may still be done, once the leader reaches the others again. A server
// that cannot read the new level is not admitted meanwhile.
func TestScenarioRaiseIsGivenUp(t *testing.T) {
	changesAddresses(t)
	scenarioOf(t, 1, 3, func(o *Options) { o.newest = 1 }, func(c *cluster) {
		c.restart(2, c.nodes...)
		c.announced(2, 2, 2)
		leader := c.leader()
		for _, n := range c.others(leader) {
			n.faults.DelayFlushes(300 * time.Millisecond)
		}
		short, cancel := context.WithTimeout(c.ctx, 50*time.Millisecond)
		defer cancel()
		testenv.Fails(c, leader.running().cluster.RaiseLevel(short, 2), "the level was raised before a majority has stored it")
		err := joinOlder(c.within(30*time.Second), leader, "d")
		for _, n := range c.nodes {
			n.mendDisk()
		}
		testenv.WantError(c, err, "is too old: it knows levels up to 1, and the cluster has level 2")
		c.level(2)
		for _, n := range c.nodes {
			c.readable(n)
		}
	})
}

// Raises that are given up, and joins of older programs right after, at random, while servers crash, lead in turn, are
// cut off and have slow disks: no member is ever one that cannot read the level, and no server's level falls.
func TestScenarioRaises(t *testing.T) {
	changesAddresses(t)
	scenariosOf(t, 6, 5, func(o *Options) { o.newest = 1 }, func(c *cluster) {
		c.jitter(time.Millisecond, 10*time.Millisecond)
		c.restart(2, c.nodes...)
		c.announced(2, 2, 2, 2, 2)
		seen := map[*node]int{}
		for round, left := 0, 8; round < 60 && left > 0; round++ {
			n := c.shuffled()[0]
			for _, o := range c.nodes {
				if o.leads() {
					n = o
				}
				if c.rand.IntN(2) == 0 {
					o.faults.DelayFlushes(time.Duration(c.rand.Int64N(int64(300 * time.Millisecond))))
				}
			}
			raise, join := 5*time.Millisecond+time.Duration(c.rand.Int64N(int64(100*time.Millisecond))), c.within(time.Second)
			c.tasks.Go(func() {
				_ = c.tryRaise(n, 2, raise)                         // may have to wait for a leader
				_ = joinOlder(join, n, fmt.Sprintf("old%d", round)) // may not lead
			})
			c.pass(time.Duration(c.rand.Int64N(int64(300 * time.Millisecond))))
			if c.rand.IntN(3) == 0 {
				c.strike()
			}
			raised := false
			for _, n := range c.nodes {
				if s := n.running(); s != nil {
					c.readable(n)
					c.endIf(s.cluster.Level() < seen[n], "the level of %s fell from %d to %d", n.name, seen[n], s.cluster.Level())
					seen[n] = s.cluster.Level()
					raised = raised || seen[n] == 2
				}
			}
			if raised {
				left--
			}
		}
		c.calm()
		for _, n := range c.nodes {
			c.readable(n)
		}
		c.removeOlder()
		c.eventually("the level is raised", time.Minute, func() bool { return c.tryRaise(c.nodes[0], 2, 5*time.Second) == nil })
		c.level(2)
	})
}

// tryRaise asks a server to raise the level, for so long.
func (c *cluster) tryRaise(n *node, to int, patience time.Duration) error {
	s := n.running()
	if s == nil {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	return s.cluster.RaiseLevel(ctx, to)
}

// removeOlder removes the members that joinOlder added.
func (c *cluster) removeOlder() {
	c.eventually("the servers with older programs are removed", time.Minute, func() bool {
		left := false
		for _, m := range c.leader().running().cluster.Members() {
			if m.Newest == 1 {
				left = true
				_ = c.leader().running().cluster.RemoveMember(c.within(5*time.Second), m.Name) // once more otherwise
			}
		}
		return !left
	})
}

// Power was lost after the level was raised and before the directory recorded that. The newer program catches up at the
// next start, and when it makes a cluster of this server alone. Then the version before is refused.
func TestRaiseThatTheDirectoryMissed(t *testing.T) {
	for _, recovers := range []bool{false, true} {
		o := Options{Dir: t.TempDir(), NodeID: "a", newest: 2, Level: 1, Logger: testLog("a")}
		s := openStore(t, o)
		identity := filepath.Join(o.Dir, "IDENTITY")
		before := testenv.Must(os.ReadFile(identity))(t)
		testenv.NoError(t, s.Cluster().RaiseLevel(t.Context(), 2))
		testenv.NoError(t, s.Close(t.Context()))
		testenv.NoError(t, os.WriteFile(identity, before, 0o600))
		if recovers {
			testenv.NoError(t, Recover(o))
		} else {
			s = openStore(t, o)
			testenv.Equal(t, s.Cluster().Level(), 2, "the level is")
			testenv.NoError(t, s.Close(t.Context()))
		}
		recorded := testenv.Must(os.ReadFile(identity))(t)
		older := o
		older.newest = 1
		testenv.WantError(t, testenv.Err(Open(t.Context(), older)), "has format 3", "Nothing was changed")
		testenv.True(t, bytes.Equal(recorded, testenv.Must(os.ReadFile(identity))(t)), "the refused start changed the identity")
		s = openStore(t, o)
		testenv.Equal(t, s.replica.fsm.view().Level(), 2, "the stored level is")
		testenv.NoError(t, s.Close(t.Context()))
	}
}

// A deletion of everything that was checked before the level was first stored, and is run afterwards, leaves it.
func TestLateDeletionLeavesTheLevel(t *testing.T) {
	s := openStore(t, Options{Dir: t.TempDir(), newest: 2})
	testenv.Must(s.Client().Put(t.Context(), "/a", "b"))(t)
	all := &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true}
	r := testenv.Must(s.Write(t.Context(), all))(t).(*pb.DeleteRangeResponse)
	testenv.True(t, r.Deleted == 1 && len(r.PrevKvs) == 1, "%d keys were deleted", r.Deleted)
	testenv.Must(s.Write(t.Context(), &pb.DeleteRangeRequest{Key: []byte(level.Key)}))(t)
	testenv.Equal(t, s.replica.fsm.view().Level(), 2, "the stored level is")
}
