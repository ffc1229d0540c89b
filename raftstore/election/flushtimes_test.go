// SPDX-License-Identifier: Apache-2.0

package election

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// How long the others' disks take decides how long an election waits, and whether another would do better than this
// server.
func TestFlushTimesOfMajority(t *testing.T) {
	const ms = time.Millisecond
	for what, c := range map[string]struct {
		voters        int
		flushes       []time.Duration // of those who answer
		with, without time.Duration
	}{
		"the other of two":                       {2, []time.Duration{ms}, ms, Never},
		"both of the others are quick":           {3, []time.Duration{2 * ms, ms}, ms, 2 * ms},
		"one of the others is slow":              {3, []time.Duration{1500 * ms, ms}, ms, 1500 * ms},
		"one of the others is unresponsive":      {3, []time.Duration{ms}, ms, Never},
		"one of the others has stalled for long": {3, []time.Duration{9 * time.Second, ms}, ms, SlowestFlush},
		"of four others two are slow":            {5, []time.Duration{1500 * ms, ms, 2 * ms, 1400 * ms}, 2 * ms, 1400 * ms},
		"of four others one is slow":             {5, []time.Duration{3 * ms, 1500 * ms, ms, 2 * ms}, 2 * ms, 3 * ms},
		"of four others three answer":            {5, []time.Duration{3 * ms, ms, 2 * ms}, 2 * ms, 3 * ms},
		"none answers: the time is not known":    {3, nil, 0, Never},
	} {
		var answers []Report
		for _, f := range c.flushes {
			answers = append(answers, Report{FlushDuration: f})
		}
		if got, want := FlushTimesOf(answers, c.voters), (FlushTimes{c.with, c.without}); got != want {
			t.Errorf("%s: %v, not %v", what, got, want)
		}
	}
}

// Another could lead only if it reaches a majority of quick disks without this server.
func TestFlushTimesOfReachableMajority(t *testing.T) {
	const quick, slow = time.Millisecond, 1500 * time.Millisecond
	a := Report{ID: "a", FlushDuration: quick, Reached: []raft.ServerID{"a", "b", "d"}}
	b := Report{ID: "b", FlushDuration: quick, Reached: []raft.ServerID{"a", "b", "d"}}
	c := Report{ID: "c", FlushDuration: quick, Reached: []raft.ServerID{"c"}}
	d := Report{ID: "d", FlushDuration: slow, Reached: []raft.ServerID{"d", "a", "b"}}
	if got, want := FlushTimesOf([]Report{a, b, c, d}, 5), (FlushTimes{quick, slow}); got != want {
		t.Errorf("a and b do not reach c, which is quick: %v, not %v", got, want)
	}
	c.Reached = nil // it is of a version that does not say so
	if got, want := FlushTimesOf([]Report{a, b, c, d}, 5), (FlushTimes{quick, quick}); got != want {
		t.Errorf("c reaches all: %v, not %v", got, want)
	}
	c.FlushDuration, c.Reached, a.Reached = slow, []raft.ServerID{"a", "b", "c"}, []raft.ServerID{"a", "c"}
	b.Reached = []raft.ServerID{"b", "c"}
	if got, want := FlushTimesOf([]Report{a, b, c}, 5), (FlushTimes{quick, slow}); got != want {
		t.Errorf("only c, which is slow itself, reaches enough: %v, not %v", got, want)
	}
	if got, want := FlushTimesOf([]Report{a, b}, 3), (FlushTimes{quick, Never}); got != want {
		t.Errorf("a and b do not reach one another: %v, not %v", got, want)
	}
}
