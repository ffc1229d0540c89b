// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Five voters. The one that comes first had a gap in the leader's messages a moment ago, so that it waits longer than
// the others until it misses the leader. Then the leader and one more vanish, and the question to the latter takes its
// whole time. No two voters become candidates at one moment: after disks that were stalled each candidacy would take 12
// s.
func TestScenarioOneCandidateAtATime(t *testing.T) {
	for _, stalled := range []time.Duration{0, 5 * time.Second} {
		for gap := 250 * time.Millisecond; gap < 350*time.Millisecond; gap += 5 * time.Millisecond {
			t.Run(fmt.Sprintf("disks stalled for %v, gap %v", stalled, gap), func(t *testing.T) {
				stage(t, 1, 5, nil, func(c *cluster) {
					c.jitter(500*time.Microsecond, 5*time.Millisecond)
					c.pass(5 * time.Second)
					c.allStalled(stalled)
					leader := c.leader()
					left := c.others(leader)
					with, cutOff := left[:3], left[3]
					first := slices.MinFunc(with, func(a, b *node) int {
						return strings.Compare(string(a.running().replica.id), string(b.running().replica.id))
					})
					c.net.Cut(leader.name, first.name)
					c.pass(gap)
					c.net.HealAll()
					c.pass(1500 * time.Millisecond)
					c.partition(with, []*node{leader, cutOff})
					began := time.Now()
					testenv.NoError(t, c.writes(with[0], time.Minute))
					if took := time.Since(began); took > 1500*time.Millisecond {
						t.Errorf("%v without a write", took)
					}
				})
			})
		}
	}
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

// Five voters whose disks were stalled a moment ago, so that a candidacy takes 12 s. The leader's stalls, and so does
// that of one more, which still answers at first. Of the three that are left two do not reach one another: only the
// third one can be elected. Whichever of the others becomes a candidate first, alone or at one moment with the other
// one, the third does not wait for what comes of it.
func TestScenarioCandidatesWithoutMajority(t *testing.T) {
	for _, flush := range []time.Duration{0, 240 * time.Millisecond} {
		for apart := time.Duration(0); apart <= 300*time.Millisecond; apart += 25 * time.Millisecond {
			t.Run(fmt.Sprintf("flushes of %v, %v apart", flush, apart), func(t *testing.T) {
				stage(t, 1, 5, nil, func(c *cluster) {
					c.jitter(500*time.Microsecond, 5*time.Millisecond)
					c.pass(5 * time.Second)
					c.allStalled(5 * time.Second)
					leader := c.leader()
					left := c.others(leader)
					a, b, third, stalls := left[0], left[1], left[2], left[3]
					c.cutLink(a, b)
					a.faults.DelayFlushes(flush)
					b.faults.DelayFlushes(flush)
					c.net.Cut(leader.name, a.name)
					c.pass(apart)
					c.partition([]*node{a, b, third, stalls}, []*node{leader})
					c.cutLink(a, b)
					stalls.stalls()
					began := time.Now()
					testenv.NoError(t, c.writes(third, time.Minute))
					if took := time.Since(began); took > 4*time.Second {
						t.Errorf("%v without a write", took)
					}
				})
			})
		}
	}
}

// Five voters whose disks were stalled a moment ago lose their leader. The one that comes first has a disk that stalls
// again, and that is not noticed, since nothing is written. It stands, and does not get as far as asking for votes.
// Another one is elected all the same.
func TestScenarioCandidateWithStalledDisk(t *testing.T) {
	seeds(t, 3, func(t *testing.T, seed uint64) {
		stage(t, seed, 5, nil, func(c *cluster) {
			c.jitter(500*time.Microsecond, 5*time.Millisecond)
			c.pass(5 * time.Second)
			c.allStalled(5 * time.Second)
			leader := c.leader()
			left := c.others(leader)
			first := slices.MinFunc(left, func(a, b *node) int {
				return strings.Compare(string(a.running().replica.id), string(b.running().replica.id))
			})
			first.stalls()
			c.isolate(leader)
			began := time.Now()
			testenv.NoError(t, c.writes(remove(left, first)[0], time.Minute))
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("%v without a write", took)
			}
		})
	})
}

// Of five voters two crash, and the link between the leader and one more is cut. The leader reaches a minority and
// gives its leadership up. The last one reaches it and the other one, so it is elected with the former leader's vote,
// however long the disks took a moment ago.
func TestScenarioFormerLeaderVotes(t *testing.T) {
	for _, stalled := range []time.Duration{0, 5 * time.Second} {
		t.Run(fmt.Sprintf("disks stalled for %v", stalled), func(t *testing.T) {
			seeds(t, 3, func(t *testing.T, seed uint64) {
				stage(t, seed, 5, nil, func(c *cluster) {
					c.jitter(500*time.Microsecond, 2*time.Millisecond)
					c.pass(3 * time.Second)
					c.allStalled(stalled)
					leader := c.leader()
					left := c.others(leader)
					between, far := left[0], left[1]
					c.cutLink(leader, far)
					left[2].crash()
					left[3].crash()
					began := time.Now()
					testenv.NoError(t, c.writes(between, 2*time.Minute))
					if took := time.Since(began); took > 4*time.Second {
						t.Errorf("seed %d: %v without a write\n%s", seed, took, c.state())
					}
				})
			})
		})
	}
}

// All disks take the same time for a flush. The links are slower for a fifth of a second while a candidate waits for
// its votes, so that one question to the others is answered too late. No other voter ends the candidacy.
func TestScenarioLateAnswersDuringElection(t *testing.T) {
	for _, flush := range []time.Duration{300 * time.Millisecond, 900 * time.Millisecond} {
		for at := 900 * time.Millisecond; at < 2*time.Second; at += 50 * time.Millisecond {
			t.Run(fmt.Sprintf("flushes of %v, after %v", flush, at), func(t *testing.T) {
				stage(t, 1, 3, nil, func(c *cluster) {
					c.jitter(time.Millisecond, time.Microsecond)
					c.pass(3 * time.Second)
					leader := c.leader()
					term, left := leader.term(), c.others(leader)
					for _, n := range left {
						n.faults.DelayFlushes(flush)
					}
					c.isolate(leader)
					c.tasks.Go(func() {
						c.pass(at)
						c.jitter(60*time.Millisecond, time.Microsecond)
						c.pass(200 * time.Millisecond)
						c.jitter(time.Millisecond, time.Microsecond)
					})
					took := c.untilLed(left, time.Minute)
					if grown := max(left[0].term(), left[1].term()) - term; grown > 1 {
						t.Errorf("%d elections in %v", grown, took)
					}
					c.mendDisks()
				})
			})
		}
	}
}
