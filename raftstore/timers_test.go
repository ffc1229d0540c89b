// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"
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
		var answers []standing
		for _, f := range c.flushes {
			answers = append(answers, standing{FlushDuration: f})
		}
		if got, want := *paceOf(answers, c.voters), (pace{c.with, c.without}); got != want {
			t.Errorf("%s: %v, not %v", what, got, want)
		}
	}
}
