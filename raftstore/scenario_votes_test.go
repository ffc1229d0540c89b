// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

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
