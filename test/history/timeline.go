// SPDX-License-Identifier: Apache-2.0

package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Event is a change as a watch saw it.
type Event struct {
	KV
	Delete bool  `json:"delete,omitempty"`
	Prev   *KV   `json:"prev,omitempty"` // where the watch asked for it
	At     int64 `json:"at"`             // when the client had it, by the history's clock
}

func (e Event) String() string {
	if e.Delete {
		return fmt.Sprintf("%d delete %s", e.Mod, e.Key)
	}
	return fmt.Sprintf("%d put %s=%s (version %d, created %d)", e.Mod, e.Key, e.Value, e.Version, e.Create)
}

// Same says whether two watches saw the same.
func Same(a, b Event) bool { return a.KV == b.KV && a.Delete == b.Delete }

// Sequence is all that one watcher saw, perhaps on several servers one after the other.
type Sequence struct {
	Watcher string  `json:"watcher"`
	Events  []Event `json:"events"`
	Visits  any     `json:"visits,omitempty"` // for a reader who looks for the cause
}

// From returns what a watcher saw from a revision on.
func (s Sequence) From(rev int64) Sequence {
	i, _ := slices.BinarySearchFunc(s.Events, rev, func(e Event, rev int64) int { return cmp.Compare(e.Mod, rev) })
	for i > 0 && s.Events[i-1].Mod >= rev {
		i--
	}
	return Sequence{Watcher: s.Watcher, Events: s.Events[i:]}
}

// CheckSequences checks that every watcher saw the same events in the order of revisions, none twice and none left
// out, and that the events are a history: versions count up, previous values are the ones before.
func CheckSequences(seqs []Sequence) []error {
	var errs []error
	if len(seqs) == 0 {
		return []error{fmt.Errorf("no client watched")}
	}
	for _, s := range seqs[1:] {
		if err := CompareSequences(seqs[0], s); err != nil {
			errs = append(errs, err)
		}
	}
	for _, s := range seqs {
		errs = append(errs, checkSequence(s)...)
	}
	return errs
}

// CompareSequences returns where two watches saw something else.
func CompareSequences(a, b Sequence) error {
	for i := range min(len(a.Events), len(b.Events)) {
		if !Same(a.Events[i], b.Events[i]) {
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

// Timeline answers questions about the state at a revision, from the events.
type Timeline struct {
	ByKey   map[string][]Event // in order
	ByValue map[string]Event
	keys    []string // sorted
}

// NewTimeline takes the events in order.
func NewTimeline(events []Event) *Timeline {
	t := &Timeline{ByKey: map[string][]Event{}, ByValue: map[string]Event{}}
	for _, e := range events {
		t.ByKey[e.Key] = append(t.ByKey[e.Key], e)
		if !e.Delete {
			t.ByValue[e.Value] = e
		}
	}
	t.keys = slices.Sorted(maps.Keys(t.ByKey))
	return t
}

// Range returns the keys with a prefix as of a revision, in order.
func (t *Timeline) Range(prefix string, rev int64) []KV {
	var out []KV
	from, _ := slices.BinarySearch(t.keys, prefix)
	for _, key := range t.keys[from:] {
		if !strings.HasPrefix(key, prefix) {
			break
		}
		if kv, there := t.At(key, rev); there {
			out = append(out, kv)
		}
	}
	return out
}

// At returns the key as of a revision.
func (t *Timeline) At(key string, rev int64) (KV, bool) {
	events := t.ByKey[key]
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
func (t *Timeline) changed(key string, rev int64) (Event, bool) {
	events := t.ByKey[key]
	i, found := slices.BinarySearchFunc(events, rev, func(e Event, rev int64) int { return int(e.Mod - rev) })
	if !found {
		return Event{}, false
	}
	return events[i], true
}
