// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// The disks of as many followers are full as are missing for a majority then, while the leader's has room. What would
// add to the store is refused on every server before the followers have used up what they hold back; reads, deletions
// and compactions are not. A full minority refuses nothing. It ends when there is room again.
func TestScenarioFullMajority(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenario(t, 1, n, func(c *cluster) {
				leader := c.leader()
				followers := c.others(leader)
				c.serves(c.nodes...)
				minority, last := followers[:n/2], followers[n/2]
				for _, f := range minority {
					f.faults.SeemFull(true)
				}
				for range 10 {
					c.pass(time.Second)
					c.serves(c.nodes...)
				}
				last.faults.SeemFull(true)
				refused := func(want bool) func() bool {
					return func() bool {
						for _, f := range c.nodes {
							_, err := f.running().Client().KV.Put(c.within(5*time.Second), "k", fmt.Sprintf("v%d", c.clock.Add(1)))
							if err != nil && !errors.Is(err, rpctypes.ErrNoSpace) {
								c.Fatalf("%s: %v\n%s", f.name, err, c.state())
							}
							if want != (err != nil) {
								return false
							}
						}
						return true
					}
				}
				c.eventually("every server refuses what would add to the store", 10*time.Second, refused(true))
				for _, f := range c.nodes {
					kv := f.running().Client().KV
					testenv.Check(t, testenv.Err(kv.Get(c.within(5*time.Second), "k")), "%s: a read", f.name)
					testenv.Check(t, testenv.Err(kv.Delete(c.within(5*time.Second), "k", clientv3.WithPrefix())), "%s: a deletion", f.name)
				}
				testenv.Check(t, testenv.Err(leader.running().Client().KV.Compact(c.within(5*time.Second), leader.running().Status().Revision)), "a compaction")
				if !leader.leads() {
					t.Errorf("the leader lost its leadership\n%s", c.state())
				}
				last.faults.SeemFull(false)
				c.eventually("every server writes", 10*time.Second, refused(false))
				for _, f := range minority {
					f.faults.SeemFull(false)
				}
			})
		})
	}
}

// The leader's disk is full while every disk takes seconds for a flush: another server with room leads, and writes.
func TestScenarioFullLeaderBesideSlowDisks(t *testing.T) {
	for _, flush := range []time.Duration{1500 * time.Millisecond, 2800 * time.Millisecond} {
		t.Run(flush.String(), func(t *testing.T) {
			seeds(t, 2, func(t *testing.T, seed uint64) {
				stage(t, seed, 5, nil, func(c *cluster) {
					c.serves(c.nodes...)
					for _, n := range c.nodes {
						n.faults.DelayFlushes(flush)
					}
					put := func(n *node) error {
						return testenv.Err(n.running().Client().KV.Put(c.within(slowWrite(flush)), "k", "v"))
					}
					for range 5 { // each server has seen how slow it is
						testenv.Check(t, put(c.leader()), "a write through the leader")
					}
					full := c.leader()
					full.faults.SeemFull(true)
					c.eventually("a server with room writes", majorityWithin+slowElection(flush), func() bool {
						return put(c.others(full)[0]) == nil && !full.leads()
					})
				})
			})
		})
	}
}

// All disks seem full, and nothing is written: no snapshot is made in twenty minutes, which would save no room.
func TestScenarioIdleBesideFullDisks(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		c.fill(c.leader(), 300)
		snapshots := func() (found []string) {
			for _, n := range c.nodes {
				found = append(found, testenv.Must(filepath.Glob(filepath.Join(n.dir, "snapshots", "*")))(t)...)
			}
			return found
		}
		before := snapshots()
		for _, n := range c.nodes {
			n.faults.SeemFull(true)
		}
		for range 20 {
			c.pass(time.Minute)
			if now := snapshots(); !slices.Equal(now, before) {
				t.Fatalf("the snapshots were %v, and are %v", before, now)
			}
		}
	})
}

// The disk of one follower is full, and the other one has crashed or its disk is stalled. The one with a full disk
// would use up what it holds back, so what would add to the store is refused until the other one stores again.
func TestScenarioFullBesideLost(t *testing.T) {
	for how, fault := range map[string]struct{ begin, end func(*node) }{
		"crashed": {(*node).crash, func(n *node) { n.start() }},
		"stalled": {(*node).stalls, func(n *node) { n.faults.DelayFlushes(0) }},
	} {
		t.Run(how, func(t *testing.T) {
			stage(t, 1, 3, nil, func(c *cluster) {
				leader := c.leader()
				full, lost := c.others(leader)[0], c.others(leader)[1]
				kv := leader.running().Client().KV
				put := func() error {
					_, err := kv.Put(c.within(5*time.Second), "k", fmt.Sprintf("v%d", c.clock.Add(1)))
					return err
				}
				fault.begin(lost)
				for range 20 {
					if err := put(); err != nil {
						t.Fatalf("no disk is full: %v\n%s", err, c.state())
					}
					c.pass(time.Second)
				}
				full.faults.SeemFull(true)
				c.eventually("the leader refuses what would add to the store", 10*time.Second, func() bool { return errors.Is(put(), rpctypes.ErrNoSpace) })
				for range 20 {
					c.pass(time.Second)
					if err := put(); !errors.Is(err, rpctypes.ErrNoSpace) {
						t.Fatalf("a write: %v\n%s", err, c.state())
					}
					if _, err := kv.Delete(c.within(5*time.Second), "k"); err != nil {
						t.Fatalf("a deletion: %v\n%s", err, c.state())
					}
				}
				fault.end(lost)
				c.eventually("the leader writes", 20*time.Second, func() bool { return put() == nil })
				full.faults.SeemFull(false)
			})
		})
	}
}

// The disk of one follower is full, and the other one stores and does not answer questions for a while. Writes go on.
func TestScenarioFullBesideOneWithoutAnswers(t *testing.T) {
	var held heldCalls
	stage(t, 1, 3, held.tune, func(c *cluster) {
		leader := c.leader()
		full, other := c.others(leader)[0], c.others(leader)[1]
		full.faults.SeemFull(true)
		held.to = other.name
		held.begin()
		for range 20 {
			c.serves(leader)
			c.pass(time.Second)
		}
		held.end()
		full.faults.SeemFull(false)
	})
}
