// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// fill does so many writes, one after the other.
func (c *cluster) fill(n *node, writes int) {
	c.Helper()
	c.fillWith(n, writes, "")
}

// fillWith does so many writes of a value.
func (c *cluster) fillWith(n *node, writes int, value string) {
	c.Helper()
	kv := n.running().Client().KV
	for i := range writes {
		v := fmt.Sprintf("fill %d%s", c.clock.Add(1), value)
		if o := c.put(c.within(10*time.Second), n.name, kv, fmt.Sprintf("fill%d", i%20), v); o.err != nil {
			c.Fatalf("seed %d: %v", c.seed, o)
		}
	}
}

// compactLog makes servers replace their logs by snapshots, all but a few entries.
func (c *cluster) compactLog(nodes ...*node) {
	c.Helper()
	for _, n := range nodes {
		s := n.running()
		if c.trail == nil {
			s.replica.dir.Log.SetTrailing(5, 0)
		}
		testenv.NoError(c, s.snapshotter.takeSnapshot(), "seed %d: snapshot of %s", c.seed, n.name)
	}
}

// The leader's snapshot arrives whole, and what follows fails: an older one cannot
// be removed, or the new one cannot be read back for a while. Neither ends the
// follower, which has everything as soon as its disk works again.
func TestScenarioSnapshotHalfInstalled(t *testing.T) {
	for _, what := range []string{"removal", "reading"} {
		t.Run(what, func(t *testing.T) {
			scenarios(t, 2, 3, func(c *cluster) {
				leader := c.leader()
				away := c.others(leader)[0]
				c.isolate(away)
				c.fill(leader, 150)
				c.compactLog(c.others(away)...)
				older := filepath.Join(away.dir, "snapshots", fmt.Sprintf("%020d-%020d.snapshot", 1, 1))
				var broken atomic.Bool
				if what == "removal" { // os.Remove refuses a folder that is not empty
					testenv.NoError(c, os.MkdirAll(filepath.Join(older, "x"), 0o700))
				} else {
					broken.Store(true)
					f := away.running().replica.fsm
					installed := f.onRestore
					f.onRestore = func() error {
						if broken.Load() {
							return errors.New("the disk fails")
						}
						return installed()
					}
				}
				c.net.HealAll()
				c.pass(20 * time.Second)
				if what == "removal" {
					c.serves(away)
				} else if n, _ := away.running().replica.dir.Snapshots.Newest(); n == 0 {
					c.Errorf("seed %d: no snapshot arrived", c.seed)
				}
				_ = leader.running().cluster.TransferLeadership(c.within(5 * time.Second)) // another leader begins at the log's end
				c.pass(5 * time.Second)
				broken.Store(false)
				testenv.NoError(c, os.RemoveAll(older))
				c.pass(20 * time.Second)
				c.fill(c.leader(), 10)
				c.serves(away)
			})
		})
	}
}

// Leases belong to the cluster, their time to the leader: a new one gives each
// its whole time again, and none expires early, whichever leads.
func TestScenarioLeases(t *testing.T) {
	scenarios(t, 3, 3, func(c *cluster) {
		w := c.work(2)
		leader := c.leader()
		through := c.others(leader)[0].running().Client()
		kept := testenv.Must(through.Grant(c.within(5*time.Second), 10))(c)
		left := testenv.Must(through.Grant(c.within(5*time.Second), 10))(c)
		for key, lease := range map[string]clientv3.LeaseID{"kept": kept.ID, "left": left.ID} {
			testenv.Must(through.Put(c.within(5*time.Second), key, key+" value", clientv3.WithLease(lease)))(c)
		}
		exists := func(key string) bool {
			resp, err := c.leader().running().Client().KV.Get(c.within(5*time.Second), key)
			if err != nil {
				c.Errorf("seed %d: %v", c.seed, err)
				return true
			}
			return len(resp.Kvs) > 0
		}
		renew := func() {
			resp, err := c.leader().running().Client().KeepAliveOnce(c.within(5*time.Second), kept.ID)
			c.failIf(err != nil || resp.TTL != 10, "keep alive: %v, %v", resp, err)
		}
		c.pass(8 * time.Second)
		renew()
		crashed := time.Now()
		leader.crash()
		next := c.leader()
		elected := time.Now()
		c.pass(8 * time.Second)
		c.failIf(!exists("left"), "a lease expired %v after the leader had changed", time.Since(crashed))
		renew()
		ttl, err := c.others(leader, next)[0].running().Client().TimeToLive(c.within(5*time.Second), left.ID, clientv3.WithAttachedKeys())
		c.failIf(err != nil || ttl.GrantedTTL != 10 || ttl.TTL < 1 || ttl.TTL > 2 || len(ttl.Keys) != 1, "%+v, %v after %v", ttl, err, time.Since(elected))
		c.pass(3 * time.Second)
		c.failIf(exists("left") || !exists("kept"), "left: %v, kept: %v", exists("left"), exists("kept"))
		leader.start()
		testenv.Check(c, testenv.Err(through.Revoke(c.within(5*time.Second), kept.ID)), "seed %d", c.seed)
		c.failIf(exists("kept"), "the lease is revoked, its key there")
		w.stop()
	})
}

// History is compacted as time goes by, under whatever leader, and alike on all
// servers.
func TestScenarioCompactor(t *testing.T) {
	seeds(t, 2, func(t *testing.T, seed uint64) {
		age := func(o *Options) { o.HistoryAge, o.HistoryBytes = time.Minute, 64<<10 }
		scenarioOf(t, seed, 3, age, func(c *cluster) {
			for range 5 {
				w := c.work(3)
				c.pass(2 * time.Second)
				leader := c.leader()
				if c.rand.IntN(2) == 0 && leader != c.nodes[0] { // whose watch tells the whole story
					leader.crash()
					c.pass(2 * time.Second)
					leader.start()
				}
				w.stop()
				c.pass(time.Minute)
			}
			status := c.leader().running().Status()
			testenv.True(t, status.Compacted >= status.Revision/4,
				"seed %d: at revision %d, only %d is compacted", seed, status.Revision, status.Compacted)
		})
	})
}
