// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// reachTries are the attempts to reach nodes directly, by the nodes' names.
type reachTries map[string]*reachTry

type reachTry struct {
	address string // the address from which the node connected
	times   int
	retryAt time.Time
}

// dueNodes returns which of the nodes that were never reached directly are tried now, and the pause after that. A new
// node is tried before those whose attempts failed: until a node was reached, its death is noticed late, and there may
// be hundreds that can never be reached. A node that connects from another address than before counts as new. A node
// that is not registered yet is tried later, since a new node connects before it registers.
func (r reachTries) dueNodes(unreached map[string]string, now time.Time,
	registered func(node string) bool) (batch []string, pause time.Duration) {
	pause = reachLater
	for name, from := range unreached {
		t := r[name]
		switch {
		case !registered(name):
			pause = min(pause, reachEvery)
			continue
		case t == nil || t.address != from:
			t = &reachTry{address: from, retryAt: now}
			r[name] = t
		}
		if wait := t.retryAt.Sub(now); wait > 0 {
			pause = min(pause, wait)
		} else {
			batch = append(batch, name)
		}
	}
	maps.DeleteFunc(r, func(name string, _ *reachTry) bool { _, still := unreached[name]; return !still })
	slices.SortFunc(batch, func(a, b string) int {
		return cmp.Or(cmp.Compare(r[a].times, r[b].times), r[a].retryAt.Compare(r[b].retryAt))
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
		t.retryAt = now.Add(after)
		pause = min(pause, after)
	}
	return batch, pause
}
