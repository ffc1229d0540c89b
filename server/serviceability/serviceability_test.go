// SPDX-License-Identifier: Apache-2.0

package serviceability

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fakeStore is a store with the given state.
type fakeStore struct {
	stalled  time.Duration
	leader   string
	takenOut bool
	cutOff   bool
	led      bool // there is a leader that it can use
	clockOff bool
}

func (t fakeStore) Stalled() time.Duration { return t.stalled }
func (t fakeStore) OtherLeader() string    { return t.leader }
func (t fakeStore) Removed() bool          { return t.takenOut }
func (t fakeStore) CutOff() bool           { return t.cutOff }

func (t fakeStore) ClockOff() (by time.Duration, off bool) { return 0, t.clockOff }

// WithoutLeader is some moment unless there is a leader.
func (t fakeStore) WithoutLeader() (since time.Time, changed <-chan struct{}) {
	if !t.led {
		since = time.Unix(1, 0)
	}
	return since, nil
}

// TestStalledServerDrainsNodes: nodes are drained when another server leads, which may have joined since the disk
// is stalled, and are not welcome again before the disk works, whatever becomes of that one.
func TestStalledServerDrainsNodes(t *testing.T) {
	const long = stalledAfter + time.Second
	now := state{}
	for i, step := range []struct {
		store fakeStore
		want  state
	}{
		{fakeStore{}, state{}},
		{fakeStore{leader: "b"}, state{}},
		{fakeStore{stalled: long}, state{}}, // alone, or none leads
		{fakeStore{stalled: stalledAfter, leader: "b"}, state{}},
		{fakeStore{stalled: long, leader: "b"}, state{true, "b"}},
		{fakeStore{stalled: 2 * long, leader: "b"}, state{true, "b"}},
		{fakeStore{stalled: long}, state{true, "b"}}, // the others elect one
		{fakeStore{stalled: long, leader: "c"}, state{true, "c"}},
		{fakeStore{leader: "c"}, state{}},
		{fakeStore{leader: "c", takenOut: true}, state{true, "c"}},
		{fakeStore{leader: "d", takenOut: true}, state{true, "d"}},
		{fakeStore{leader: "e", cutOff: true}, state{true, "e"}},
		{fakeStore{}, state{}},
	} {
		next, why := now.nextState(step.store)
		testenv.True(t, next == step.want && (why != "") == next.unable,
			"step %d, %+v after %+v: %+v, %q, want %+v", i, step.store, now, next, why, step.want)
		now = next
	}
}

// TestRunDrainsAndFailsOver: connections are drained once while this server cannot serve, programs fail over again when
// another server leads, and both end when this server can serve again.
func TestRunDrainsAndFailsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var store Store // nil: it is not open
		var targets, did []string
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			Run(ctx, Options{
				Store: func() Store { return store }, FailoverTargets: func() []string { return targets },
				SetFailedOver: func() { did = append(did, "go away") },
				Drain:         func(on bool) { did = append(did, fmt.Sprint("drain ", on)) },
				FailOver:      func(on bool) { did = append(did, fmt.Sprint("fail over ", on)) },
				SetReadiness:  func(string) {},
				Logger:        slog.New(slog.DiscardHandler),
			})
		})
		after := func(want ...string) {
			t.Helper()
			time.Sleep(2 * diskPoll) // fake time
			synctest.Wait()
			did = slices.DeleteFunc(did, func(s string) bool { return s == "go away" }) // that is said again and again
			testenv.True(t, slices.Equal(did, want), "%q, want %q", did, want)
			did = nil
		}
		after()
		targets = []string{"b"}
		after("drain true", "fail over true")
		targets, store = nil, fakeStore{}
		after("drain false", "fail over false")
		store = fakeStore{leader: "b", takenOut: true}
		after("drain true", "fail over true")
		store = fakeStore{leader: "c", takenOut: true}
		after("fail over true")
		store = fakeStore{leader: "c"}
		after("drain false", "fail over false")
		targets = []string{"c"}
		time.Sleep(3 * diskPoll) // fake time
		synctest.Wait()
		testenv.True(t, slices.Contains(did, "go away"), "the node does not hear that another server answers: %q", did)
		cancel()
		running.Wait()
	})
}

// TestReadinessFollowsLeaderSlowly: nodes learn that this server has no leader when it has had none for some seconds,
// and that it has one again when it has had one for as long. A server that starts is not ready, and is at once when it
// has a leader. They learn of a wrong clock at once.
func TestReadinessFollowsLeaderSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var store Store // nil: it is not open
		reported := "never"
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			Run(ctx, Options{
				Store: func() Store { return store }, FailoverTargets: func() []string { return nil },
				SetReadiness: func(reason string) { reported = reason }, Logger: slog.New(slog.DiscardHandler),
			})
		})
		after := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d) // fake time
			synctest.Wait()
			testenv.Equal(t, reported, want, "the reason that nodes have:")
		}
		after(0, nodetunnel.NoLeader)
		after(time.Minute, nodetunnel.NoLeader)
		store = fakeStore{}
		after(time.Second, nodetunnel.NoLeader)
		store = fakeStore{led: true}
		after(diskPoll, "")
		for range 10 { // elections
			store = fakeStore{}
			after(unreadyAfter-diskPoll, "")
			store = fakeStore{led: true}
			after(diskPoll, "")
		}
		store = fakeStore{}
		after(unreadyAfter, "")
		after(diskPoll, nodetunnel.NoLeader)
		for range 10 {
			store = fakeStore{led: true}
			after(unreadyAfter-diskPoll, nodetunnel.NoLeader)
			store = fakeStore{}
			after(diskPoll, nodetunnel.NoLeader)
		}
		store = fakeStore{led: true}
		after(unreadyAfter+diskPoll, "")
		store = fakeStore{led: true, clockOff: true}
		after(diskPoll, nodetunnel.ClockOff)
		store = fakeStore{led: true}
		after(unreadyAfter, nodetunnel.ClockOff)
		after(diskPoll, "")
		store = fakeStore{led: true, clockOff: true}
		after(diskPoll, nodetunnel.ClockOff)
		store = fakeStore{}
		after(unreadyAfter+diskPoll, nodetunnel.NoLeader)
		cancel()
		running.Wait()
	})
}
