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
					leader := c.leader()
					if stalled > 0 {
						for _, n := range c.nodes {
							n.stalls()
						}
						c.tasks.Go(func() { _, _ = leader.running().Client().Put(c.within(4*time.Second), "k", "v") }) // the disks have something to write
						c.pass(stalled)
						c.mendDisks()
					}
					testenv.NoError(t, c.writes(leader, 2*time.Minute))
					c.pass(3 * time.Second)
					leader = c.leader()
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
