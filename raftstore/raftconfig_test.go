// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// How long the others' disks take decides how long an election waits, and whether another would do better than this
// server.
func TestPaceOf(t *testing.T) {
	const ms = time.Millisecond
	for what, c := range map[string]struct {
		voters        int
		flushes       []time.Duration // of those who answer
		with, without time.Duration
	}{
		"the other of two":                       {2, []time.Duration{ms}, ms, never},
		"both of the others are quick":           {3, []time.Duration{2 * ms, ms}, ms, 2 * ms},
		"one of the others is slow":              {3, []time.Duration{1500 * ms, ms}, ms, 1500 * ms},
		"one of the others is silent":            {3, []time.Duration{ms}, ms, never},
		"one of the others has stalled for long": {3, []time.Duration{9 * time.Second, ms}, ms, slowestFlush},
		"of four others two are slow":            {5, []time.Duration{1500 * ms, ms, 2 * ms, 1400 * ms}, 2 * ms, 1400 * ms},
		"of four others one is slow":             {5, []time.Duration{3 * ms, 1500 * ms, ms, 2 * ms}, 2 * ms, 3 * ms},
		"of four others three answer":            {5, []time.Duration{3 * ms, ms, 2 * ms}, 2 * ms, 3 * ms},
		"none answers: the time is not known":    {3, nil, 0, never},
	} {
		var answers []electionState
		for _, f := range c.flushes {
			answers = append(answers, electionState{FlushDuration: f})
		}
		if got, want := *paceOf(answers, c.voters), (pace{c.with, c.without}); got != want {
			t.Errorf("%s: %v, not %v", what, got, want)
		}
	}
}

// Another could lead only if it reaches a majority of quick disks without this server.
func TestPaceOfThoseWhoReachOneAnother(t *testing.T) {
	const quick, slow = time.Millisecond, 1500 * time.Millisecond
	a := electionState{ID: "a", FlushDuration: quick, Reached: []raft.ServerID{"a", "b", "d"}}
	b := electionState{ID: "b", FlushDuration: quick, Reached: []raft.ServerID{"a", "b", "d"}}
	c := electionState{ID: "c", FlushDuration: quick, Reached: []raft.ServerID{"c"}}
	d := electionState{ID: "d", FlushDuration: slow, Reached: []raft.ServerID{"d", "a", "b"}}
	if got, want := *paceOf([]electionState{a, b, c, d}, 5), (pace{quick, slow}); got != want {
		t.Errorf("a and b do not reach c, which is quick: %v, not %v", got, want)
	}
	c.Reached = nil // it is of a version that does not say so
	if got, want := *paceOf([]electionState{a, b, c, d}, 5), (pace{quick, quick}); got != want {
		t.Errorf("c reaches all: %v, not %v", got, want)
	}
	c.FlushDuration, c.Reached, a.Reached = slow, []raft.ServerID{"a", "b", "c"}, []raft.ServerID{"a", "c"}
	b.Reached = []raft.ServerID{"b", "c"}
	if got, want := *paceOf([]electionState{a, b, c}, 5), (pace{quick, slow}); got != want {
		t.Errorf("only c, which is slow itself, reaches enough: %v, not %v", got, want)
	}
	if got, want := *paceOf([]electionState{a, b}, 3), (pace{quick, never}); got != want {
		t.Errorf("a and b do not reach one another: %v, not %v", got, want)
	}
}
