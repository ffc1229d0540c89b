// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// recover makes a stopped server the only one of its cluster, and starts it.
func (c *cluster) recover(n *node) {
	c.Helper()
	o := n.options()
	o.Network = nil
	testenv.NoError(c, Recover(o))
	c.two = true
	c.net.Reset(n.name)
	n.start()
	c.ready(n)
}

// The survivor lacks the last writes of the majority that is lost. No revision that clients have seen of those is given
// to another write, and a watch that goes on from there gets an error and lists again. Each further recovery leaps
// again. The leap outlasts a restart, and servers that join have it.
func TestScenarioRecoveredRevisionsAreNew(t *testing.T) {
	stages(t, 3, 3, nil, func(c *cluster) {
		survivor := c.others(c.leader())[0]
		c.fill(c.leader(), 20)
		c.serves(survivor)
		c.isolate(survivor)
		majority := c.others(survivor)
		seen := c.puts(c.leader(majority...), "lost", 5)
		for _, n := range c.nodes {
			n.crash()
		}
		c.net.HealAll()
		for round := range 2 {
			c.recover(survivor)
			ctx := c.within(time.Minute)
			old := survivor.running().Client().Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(seen+1))
			if r := <-old; r.CompactRevision <= seen {
				c.Errorf("seed %d, recovery %d: a watch after revision %d got %+v, want the end by a compaction", c.seed, round, seen, r)
			}
			next := c.puts(survivor, "new", 1)
			testenv.True(c, next > seen+revisionLeap, "seed %d, recovery %d: clients saw revision %d, the next write got %d", c.seed, round, seen, next)
			if r, err := survivor.running().Client().KV.Get(ctx, "fill", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || r.Count != 20 {
				c.Errorf("seed %d, recovery %d: %v keys are left of 20: %v", c.seed, round, r, err)
			}
			seen = next
			survivor.crash()
			survivor.start()
			c.ready(survivor)
			if next = c.puts(survivor, "new", 1); next != seen+1 {
				c.Errorf("seed %d, recovery %d: revision %d follows %d after a restart", c.seed, round, next, seen)
			}
			d := c.join(fmt.Sprint("d", round), survivor.name)
			c.ready(d)
			c.serves(d)
			c.same(survivor, d)
			seen = survivor.running().Status().Revision
			d.gone = true
			d.crash()
			survivor.crash()
		}
	})
}

// puts writes so many keys and returns the revision of the last.
func (c *cluster) puts(n *node, prefix string, count int) (revision int64) {
	c.Helper()
	for i := range count {
		r, err := n.running().Client().KV.Put(c.within(10*time.Second), fmt.Sprint(prefix, i), "x")
		c.endIf(err != nil, "%v", err)
		revision = r.Header.Revision
	}
	return revision
}

// same checks that two servers come to hold the same state.
func (c *cluster) same(a, b *node) {
	c.Helper()
	c.eventually("both servers hold the same", 10*time.Second, func() bool {
		x, y := a.running().replica.fsm.view(), b.running().replica.fsm.view()
		return x.Revision() == y.Revision() && x.Compacted() == y.Compacted() && x.Hash(x.Revision()) == y.Hash(y.Revision())
	})
}
