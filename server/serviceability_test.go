// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"
	"time"
)

// fakeStore is a store with the given state.
type fakeStore struct {
	stalled  time.Duration
	leader   string
	takenOut bool
	cutOff   bool
}

func (t fakeStore) Stalled() time.Duration { return t.stalled }
func (t fakeStore) OtherLeader() string    { return t.leader }
func (t fakeStore) Removed() bool          { return t.takenOut }
func (t fakeStore) CutOff() bool           { return t.cutOff }

// TestStalledServerDrainsNodes: nodes are drained when another server leads, which may have joined since the disk
// hangs, and are not welcome again before the disk works, whatever becomes of that one.
func TestStalledServerDrainsNodes(t *testing.T) {
	const long = stalledAfter + time.Second
	now := serviceability{}
	for i, step := range []struct {
		store fakeStore
		want  serviceability
	}{
		{fakeStore{}, serviceability{}},
		{fakeStore{leader: "b"}, serviceability{}},
		{fakeStore{stalled: long}, serviceability{}}, // alone, or nobody leads
		{fakeStore{stalled: stalledAfter, leader: "b"}, serviceability{}},
		{fakeStore{stalled: long, leader: "b"}, serviceability{true, "b"}},
		{fakeStore{stalled: 2 * long, leader: "b"}, serviceability{true, "b"}},
		{fakeStore{stalled: long}, serviceability{true, "b"}}, // the others elect one
		{fakeStore{stalled: long, leader: "c"}, serviceability{true, "c"}},
		{fakeStore{leader: "c"}, serviceability{}},
		{fakeStore{leader: "c", takenOut: true}, serviceability{true, "c"}},
		{fakeStore{leader: "d", takenOut: true}, serviceability{true, "d"}},
		{fakeStore{leader: "e", cutOff: true}, serviceability{true, "e"}},
		{fakeStore{}, serviceability{}},
	} {
		next, why := now.next(step.store)
		if next != step.want || (why != "") != next.unable {
			t.Errorf("step %d, %+v after %+v: %+v, %q, want %+v", i, step.store, now, next, why, step.want)
		}
		now = next
	}
}
