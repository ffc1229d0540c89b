// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestReachTries: a node that comes is tried at once, also where hundreds were tried in vain; those are tried in turn, and ever less.
func TestReachTries(t *testing.T) {
	now := time.Now()
	r := reachTries{}
	everyone := func(string) bool { return true }
	var behindRouters []string
	for i := range 20 * reachAtOnce {
		behindRouters = append(behindRouters, fmt.Sprintf("far%d", i))
	}
	tried := map[string]int{}
	end := now.Add(10 * time.Minute)
	for n := 0; now.Before(end); n++ {
		nodes := behindRouters
		name := fmt.Sprintf("new%d", n)
		if n%7 == 3 {
			nodes = append(slices.Clone(behindRouters), name)
		}
		batch, pause := r.take(nodes, now, everyone)
		if n%7 == 3 && !slices.Contains(batch, name) && n > len(behindRouters)/reachAtOnce {
			t.Fatalf("a node that has just come is not tried, in round %d", n)
		}
		if len(batch) > reachAtOnce {
			t.Fatalf("%d at a time", len(batch))
		}
		for _, name := range batch {
			tried[name]++
		}
		if len(batch) > 0 {
			now = now.Add(reachPatience) // nobody answers
		}
		now = now.Add(pause)
	}
	least, most := tried[behindRouters[0]], 0
	for _, name := range behindRouters {
		least, most = min(least, tried[name]), max(most, tried[name])
	}
	if least == 0 || most-least > 1 {
		t.Errorf("some were tried %d times, others %d", least, most)
	}
	if len(r) > len(behindRouters)+1 {
		t.Errorf("%d are remembered of %d", len(r), len(behindRouters))
	}
	// One alone: soon at first, and then seldom. One that is not registered yet is looked at again soon.
	r = reachTries{}
	for i := range 2 * reachSoon {
		batch, pause := r.take([]string{"one"}, now, everyone)
		want := time.Duration(reachEvery)
		if i >= reachSoon-1 {
			want = reachLater
		}
		if len(batch) != 1 || pause != want {
			t.Fatalf("try %d: %q, then %v, want %v", i+1, batch, pause, want)
		}
		if batch, rest := r.take([]string{"one"}, now.Add(pause/2), everyone); len(batch) != 0 || rest != pause/2 {
			t.Fatalf("too early: %q, %v", batch, rest)
		}
		now = now.Add(pause)
	}
	if batch, pause := r.take([]string{"one", "unknown"}, now.Add(-reachLater/2), func(name string) bool { return name == "one" }); len(batch) != 0 || pause != reachEvery {
		t.Errorf("one that is not registered yet: %q, %v", batch, pause)
	}
}
