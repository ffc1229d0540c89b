// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"
	"time"
)

// told is a store that says what it was told.
type told struct {
	stalled  time.Duration
	leader   string
	takenOut bool
	cutOff   bool
}

func (t told) Stalled() time.Duration { return t.stalled }
func (t told) OtherLeader() string    { return t.leader }
func (t told) TakenOut() bool         { return t.takenOut }
func (t told) CutOff() bool           { return t.cutOff }

// TestVain: nodes are sent away when another server leads, which may have joined since the disk hangs, and are not welcome again before the disk works, whatever becomes of that one.
func TestVain(t *testing.T) {
	const long = hangsAfter + time.Second
	now := vain{}
	for i, step := range []struct {
		store told
		want  vain
	}{
		{told{}, vain{}},
		{told{leader: "b"}, vain{}},
		{told{stalled: long}, vain{}}, // alone, or nobody leads
		{told{stalled: hangsAfter, leader: "b"}, vain{}},
		{told{stalled: long, leader: "b"}, vain{true, "b"}},
		{told{stalled: 2 * long, leader: "b"}, vain{true, "b"}},
		{told{stalled: long}, vain{true, "b"}}, // the others elect one
		{told{stalled: long, leader: "c"}, vain{true, "c"}},
		{told{leader: "c"}, vain{}},
		{told{leader: "c", takenOut: true}, vain{true, "c"}},
		{told{leader: "d", takenOut: true}, vain{true, "d"}},
		{told{leader: "e", cutOff: true}, vain{true, "e"}},
		{told{}, vain{}},
	} {
		next, why := now.next(step.store)
		if next != step.want || (why != "") != next.here {
			t.Errorf("step %d, %+v after %+v: %+v, %q, want %+v", i, step.store, now, next, why, step.want)
		}
		now = next
	}
}
