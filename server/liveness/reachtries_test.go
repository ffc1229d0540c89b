// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNewNodesAreProbedFirst: a node that comes is tried at once, also where hundreds were tried and failed; those are
// tried in turn, and ever less.
func TestNewNodesAreProbedFirst(t *testing.T) {
	now := time.Now()
	r := reachTries{}
	everyone := func(string) bool { return true }
	behindRouters := map[string]string{}
	for i := range 20 * reachAtOnce {
		behindRouters[fmt.Sprintf("far%d", i)] = "192.0.2.1"
	}
	tried := map[string]int{}
	end := now.Add(10 * time.Minute)
	for n := 0; now.Before(end); n++ {
		nodes := behindRouters
		name := fmt.Sprintf("new%d", n)
		if n%7 == 3 {
			nodes = maps.Clone(behindRouters)
			nodes[name] = "10.0.0.1"
		}
		batch, pause := r.dueNodes(nodes, now, everyone)
		if n%7 == 3 && !slices.Contains(batch, name) && n > len(behindRouters)/reachAtOnce {
			t.Fatalf("a node that has just come is not tried, in round %d", n)
		}
		testenv.Require(t, len(batch) <= reachAtOnce, "%d at a time", len(batch))
		for _, name := range batch {
			tried[name]++
		}
		if len(batch) > 0 {
			now = now.Add(reachTimeout) // no node answers
		}
		now = now.Add(pause)
	}
	least, most := tried["far0"], 0
	for name := range behindRouters {
		least, most = min(least, tried[name]), max(most, tried[name])
	}
	testenv.False(t, least == 0 || most-least > 1, "some were tried %d times, others %d", least, most)
	testenv.False(t, len(r) > len(behindRouters)+1, "%d are remembered of %d", len(r), len(behindRouters))
	// One alone: soon at first, and then seldom. One that is not registered yet is looked at again soon.
	r = reachTries{}
	one := map[string]string{"one": "192.0.2.1"}
	for i := range 2 * reachSoon {
		batch, pause := r.dueNodes(one, now, everyone)
		want := time.Duration(reachEvery)
		if i >= reachSoon-1 {
			want = reachLater
		}
		testenv.Require(t, len(batch) == 1 && pause == want, "try %d: %q, then %v, want %v", i+1, batch, pause, want)
		if batch, rest := r.dueNodes(one, now.Add(pause/2), everyone); len(batch) != 0 || rest != pause/2 {
			t.Fatalf("too early: %q, %v", batch, rest)
		}
		now = now.Add(pause)
	}
	if batch, pause := r.dueNodes(map[string]string{"one": "192.0.2.1", "unknown": "10.0.0.1"}, now.Add(-reachLater/2),
		func(name string) bool { return name == "one" }); len(batch) != 0 || pause != reachEvery {
		t.Errorf("one that is not registered yet: %q, %v", batch, pause)
	}
	// One that was behind a router for long, and connects from another network before anybody has seen it gone.
	for i := range 2 {
		if batch, pause := r.dueNodes(map[string]string{"one": "10.0.0.1"}, now.Add(-reachLater/2),
			everyone); len(batch) != 1-i || pause != reachEvery {
			t.Errorf("one that has moved, look %d: %q, %v", i+1, batch, pause)
		}
	}
}
