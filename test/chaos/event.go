// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"cmp"
	"fmt"
	"slices"
)

// Event is a change as a watch saw it.
type Event struct {
	KV
	Delete bool  `json:"delete,omitempty"`
	Prev   *KV   `json:"prev,omitempty"` // where the watch asked for it
	At     int64 `json:"at"`             // when the client had it, nanoseconds since the history began
}

func (e Event) String() string {
	if e.Delete {
		return fmt.Sprintf("%d delete %s", e.Mod, e.Key)
	}
	return fmt.Sprintf("%d put %s=%s (version %d, created %d)", e.Mod, e.Key, e.Value, e.Version, e.Create)
}

func sameEvent(a, b Event) bool { return a.KV == b.KV && a.Delete == b.Delete }

// Sequence is all that one watcher saw, perhaps on several servers one after the other.
type Sequence struct {
	Watcher string  `json:"watcher"`
	Events  []Event `json:"events"`
	Visits  []visit `json:"visits,omitempty"` // for whoever looks for the cause
}

// from returns what a watcher saw from a revision on.
func (s Sequence) from(rev int64) Sequence {
	i, _ := slices.BinarySearchFunc(s.Events, rev, func(e Event, rev int64) int { return cmp.Compare(e.Mod, rev) })
	for i > 0 && s.Events[i-1].Mod >= rev {
		i--
	}
	return Sequence{Watcher: s.Watcher, Events: s.Events[i:]}
}

// checkSequences checks that every watcher saw the same events in the order of revisions, none twice and none left
// out, and that the events are a history: versions count up, previous values are the ones before.
func checkSequences(seqs []Sequence) []error {
	var errs []error
	if len(seqs) == 0 {
		return []error{fmt.Errorf("nobody watched")}
	}
	for _, s := range seqs[1:] {
		if err := compareSequences(seqs[0], s); err != nil {
			errs = append(errs, err)
		}
	}
	for _, s := range seqs {
		errs = append(errs, checkSequence(s)...)
	}
	return errs
}

func compareSequences(a, b Sequence) error {
	for i := range min(len(a.Events), len(b.Events)) {
		if !sameEvent(a.Events[i], b.Events[i]) {
			return fmt.Errorf("event %d: watcher %s saw %q, watcher %s saw %q", i, a.Watcher, a.Events[i], b.Watcher, b.Events[i])
		}
	}
	if len(a.Events) != len(b.Events) {
		return fmt.Errorf("watcher %s saw %d events, watcher %s %d", a.Watcher, len(a.Events), b.Watcher, len(b.Events))
	}
	return nil
}

func checkSequence(s Sequence) []error {
	var errs []error
	fail := func(i int, format string, args ...any) {
		if len(errs) < 10 {
			errs = append(errs, fmt.Errorf("watcher %s, event %d, %q: %s", s.Watcher, i, s.Events[i], fmt.Sprintf(format, args...)))
		}
	}
	now := map[string]KV{}
	values := map[string]int64{}
	rev, atRev := int64(0), map[string]bool{}
	for i, e := range s.Events {
		switch {
		case e.Mod < rev:
			fail(i, "after revision %d", rev)
		case e.Mod > rev:
			rev = e.Mod
			clear(atRev)
		}
		if atRev[e.Key] {
			fail(i, "the key has two events in a revision")
		}
		atRev[e.Key] = true
		prev, existed := now[e.Key]
		if e.Prev != nil && (!existed || *e.Prev != prev) {
			fail(i, "previous value %+v, but before came %+v", *e.Prev, prev)
		}
		if e.Delete {
			if !existed {
				fail(i, "a key that is not there")
			}
			delete(now, e.Key)
			continue
		}
		want := KV{Create: e.Mod, Version: 1}
		if existed {
			want = KV{Create: prev.Create, Version: prev.Version + 1}
		}
		if e.Create != want.Create || e.Version != want.Version {
			fail(i, "should be version %d, created %d", want.Version, want.Create)
		}
		if before, dup := values[e.Value]; dup {
			fail(i, "the value was written before, at revision %d", before)
		}
		values[e.Value] = e.Mod
		now[e.Key] = e.KV
	}
	return errs
}

// timeline answers questions about the state at a revision, from the events.
type timeline struct {
	byKey   map[string][]Event // in order
	byValue map[string]Event
	last    int64
}

func newTimeline(events []Event) *timeline {
	t := &timeline{byKey: map[string][]Event{}, byValue: map[string]Event{}}
	for _, e := range events {
		t.byKey[e.Key] = append(t.byKey[e.Key], e)
		if !e.Delete {
			t.byValue[e.Value] = e
		}
		t.last = max(t.last, e.Mod)
	}
	return t
}

// at returns the key as of a revision.
func (t *timeline) at(key string, rev int64) (KV, bool) {
	events := t.byKey[key]
	i, found := slices.BinarySearchFunc(events, rev, func(e Event, rev int64) int { return int(e.Mod - rev) })
	if !found {
		i--
	}
	if i < 0 || events[i].Delete {
		return KV{}, false
	}
	return events[i].KV, true
}

// changed returns the key's event at exactly a revision.
func (t *timeline) changed(key string, rev int64) (Event, bool) {
	events := t.byKey[key]
	i, found := slices.BinarySearchFunc(events, rev, func(e Event, rev int64) int { return int(e.Mod - rev) })
	if !found {
		return Event{}, false
	}
	return events[i], true
}
