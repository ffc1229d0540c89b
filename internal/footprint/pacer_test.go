// SPDX-License-Identifier: Apache-2.0

package footprint

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	now := time.Unix(0, 0)
	var set []int
	p := &Pacer{idle: 25, busy: 100, now: func() time.Time { return now }, set: func(n int) { set = append(set, n) }, last: now}
	p.Rest()
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{5 * time.Second, 25}, {time.Second, 100}, {5 * time.Second, 100}, {11 * time.Second, 25}, {3 * time.Second, 25}} {
		now = now.Add(step.after)
		p.collected()
		if got := set[len(set)-1]; got != step.want {
			t.Errorf("%v after the last collection: %d, want %d", step.after, got, step.want)
		}
	}
	if len(set) != 3 {
		t.Errorf("set to %v: a value that does not change is not set again", set)
	}
}

// A real collection is noticed, again and again.
func TestPacerSeesCollections(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	seen := make(chan struct{}, 100) // more than the collections of this test
	NewPacer(25, 100, func() time.Time {
		select {
		case seen <- struct{}{}:
		default:
		}
		return time.Now()
	})
	<-seen // at its making
	for range 3 {
		runtime.GC()
		select {
		case <-seen:
		case <-time.After(10 * time.Second):
			t.Fatal("a collection was not noticed")
		}
	}
}
