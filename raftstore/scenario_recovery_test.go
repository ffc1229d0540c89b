// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Two of three servers are lost for good. What would be lost with them is shown,
// then the third goes on alone, and others join it.
func TestScenarioRecovery(t *testing.T) {
	scenarios(t, 3, 3, func(c *cluster) {
		w := c.work(3)
		c.pass(3 * time.Second)
		w.stop()
		survivor := c.shuffled()[0]
		lost := c.others(survivor)
		c.eventually("everybody has everything", 5*time.Second, func() bool {
			return survivor.running().Status().Revision == lost[0].running().Status().Revision &&
				survivor.running().Status().Revision == lost[1].running().Status().Revision
		})
		revision := survivor.running().Status().Revision
		was := survivor.running().replica.id
		for _, n := range lost {
			n.crash()
		}
		c.refuses(survivor)
		survivor.crash()

		o := survivor.options()
		o.Network = nil
		plan, err := PlanRecovery(o)
		c.endIf(err != nil || plan.Revision < revision || len(plan.Members) != 3 || plan.Node != survivor.name || plan.LastIndex == 0, "%+v, %v, instead of revision %d at least", plan, err, revision)
		testenv.Equal(c, fmt.Sprint(testenv.Must(PlanRecovery(o))(c)), fmt.Sprint(plan), "seed %d: the plan changed something:", c.seed)
		c.leapt.Store(revision)
		c.recover(survivor)
		if now := survivor.running(); now.replica.id == was || now.Status().Revision < plan.Revision+revisionLeap || len(now.cluster.Members()) != 1 {
			c.Errorf("seed %d: %v at revision %d, members %v", c.seed, now.replica.id, now.Status().Revision, now.cluster.Members())
		}
		c.serves(survivor)
		// One that was thought lost starts with its old directory: it has no say.
		lost[0].start()
		c.pass(5 * time.Second)
		c.refuses(lost[0])
		c.serves(survivor)
		lost[0].stop()
		for _, n := range lost {
			n.wipe()
			n.start(survivor.name)
			c.ready(n)
			c.serves(n)
		}
		c.rest(30*time.Second, 3, "a", "b", "c")
	})
}

// Two of three servers were thought lost, and start with their old directories when the third has been made the only
// one. Together they are a majority of the cluster that there was, and go on as that: nothing here can know better, so
// it is for who recovers to keep them from it. But neither cluster takes anything from the other one.
func TestScenarioRecoveredBesideAMajority(t *testing.T) {
	stages(t, 3, 3, nil, func(c *cluster) {
		survivor := c.shuffled()[0]
		c.fill(c.leader(), 20)
		lost := c.others(survivor)
		for _, n := range c.nodes {
			n.crash()
		}
		c.recover(survivor)
		c.serves(survivor)
		for _, n := range lost {
			n.start()
		}
		for _, n := range lost {
			c.ready(n)
		}
		c.pass(10 * time.Second)
		write := func(n *node, key string) {
			c.Helper()
			testenv.Check(c, testenv.Err(n.running().Client().KV.Put(c.within(10*time.Second), key, "x")), "seed %d: %s at %s", c.seed, key, n.name)
		}
		write(survivor, "recovered")
		write(lost[0], "before")
		c.pass(10 * time.Second)
		for _, n := range c.nodes {
			want := map[string]int64{"recovered": 0, "before": 1}
			if n == survivor {
				want = map[string]int64{"recovered": 1, "before": 0}
			}
			for key, count := range want {
				if r, err := n.running().Client().KV.Get(c.within(10*time.Second), key); err != nil || r.Count != count {
					c.Errorf("seed %d: %s has %q %d times, want %d: %v", c.seed, n.name, key, r.Count, count, err)
				}
			}
		}
		testenv.Equal(c, len(survivor.running().cluster.Members()), 1, "seed %d: the one that was recovered has the members", c.seed)
	})
}

// Recovery is for a stopped server, and for one that is there.
func TestScenarioRecoveryRefused(t *testing.T) {
	scenario(t, 1, 1, func(c *cluster) {
		o := c.nodes[0].options()
		o.Network = nil
		inUse := (*InUseError)(nil)
		if err := Recover(o); !errors.As(err, &inUse) {
			t.Errorf("a running server was recovered: %v", err)
		}
		o.Dir = o.Dir + "x"
		testenv.Fails(t, Recover(o), "nothing was recovered")
		testenv.Fails(t, testenv.Err(os.Stat(o.Dir)), "a directory was made")
		c.serves(c.nodes[0])
	})
}

// There is no space for what a recovery writes. The server stays the member that it was: when one of the two others is
// back, it is part of a majority.
func TestScenarioRecoveryWithoutSpace(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		c.fillWith(c.leader(), 20, noise(20<<10))
		survivor := c.others(c.leader())[0]
		c.serves(survivor)
		for _, n := range c.nodes {
			n.stop()
		}
		snapshots := filepath.Join(survivor.dir, "snapshots")
		if err := unix.Mount("tmpfs", snapshots, "tmpfs", 0, "size=4k"); err != nil {
			testenv.Missing(t, testenv.Root, "it mounts a file system: %v", err)
		}
		o := survivor.options()
		o.Network = nil
		err := Recover(o)
		testenv.Check(c, unix.Unmount(snapshots, 0))
		c.failIf(!errors.Is(err, unix.ENOSPC), "the recovery ended with %v", err)
		c.net.Reset(survivor.name)
		survivor.start()
		back := c.others(survivor)[0]
		back.start()
		testenv.Check(c, c.writes(back, 10*time.Second))
	})
}
