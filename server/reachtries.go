// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// reachTries are the tries to reach nodes without their tunnels, by the nodes' names.
type reachTries map[string]*reachTry

type reachTry struct {
	times int
	next  time.Time
}

// take returns which of the nodes that were never reached are tried now, and how long to wait after that. One that has just come is tried before those that were tried in vain:
// until it was reached its death is seen late, and there may be hundreds that nobody can ever reach. A node that is new has connected before it is registered.
func (r reachTries) take(unreached []string, now time.Time, registered func(node string) bool) (batch []string, pause time.Duration) {
	still := map[string]bool{}
	pause = reachLater
	for _, name := range unreached {
		still[name] = true
		t := r[name]
		switch {
		case !registered(name):
			pause = reachEvery
			continue
		case t == nil:
			t = &reachTry{next: now}
			r[name] = t
		}
		if wait := t.next.Sub(now); wait > 0 {
			pause = min(pause, wait)
		} else {
			batch = append(batch, name)
		}
	}
	maps.DeleteFunc(r, func(name string, _ *reachTry) bool { return !still[name] })
	slices.SortFunc(batch, func(a, b string) int {
		return cmp.Or(cmp.Compare(r[a].times, r[b].times), r[a].next.Compare(r[b].next))
	})
	if len(batch) > reachAtOnce {
		batch, pause = batch[:reachAtOnce], 0
	}
	for _, name := range batch {
		t := r[name]
		t.times++
		after := reachEvery
		if t.times >= reachSoon {
			after = reachLater
		}
		t.next = now.Add(after)
		pause = min(pause, after)
	}
	return batch, pause
}
