// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// check judges the history:
//
//   - every server's watch tells the same story, without a gap or repetition;
//   - each value, which is written once, is in it once at most, and if
//     acknowledged, at the revision that the client was told;
//   - what was surely not done is not in it;
//   - every answer is true of the story at its revision;
//   - an operation that began after another had ended has no smaller revision,
//     and a greater one if it wrote: with the above, that is linearizability;
//   - fenced writes never go back to an earlier term.
func (c *cluster) check() {
	c.Helper()
	ops, watches := c.record.all()
	for i, w := range watches {
		watches[i] = w.soFar()
	}
	s := newStoryBook(story(watches))
	for _, problem := range append(s.problems, judge(s, ops)...) {
		c.Errorf("seed %d: %s", c.seed, problem)
	}
	for _, w := range watches {
		c.failIf(w.err != nil, "watch of %s: %v", w.node, w.err)
		s.compare(w, func(format string, args ...any) { c.Errorf("seed %d: "+format, append([]any{c.seed}, args...)...) })
	}
	if c.Failed() {
		c.Log(c.state())
	}
}

// story is the longest that a server's watches, put together, tell without a
// gap.
func story(watches []*watched) []*clientv3.Event {
	perNode := make(map[string][]*clientv3.Event)
	broken := make(map[string]bool)
	for _, w := range watches {
		perNode[w.node] = append(perNode[w.node], w.events...)
		broken[w.node] = broken[w.node] || w.compacted
	}
	var longest []*clientv3.Event
	for node, events := range perNode {
		if !broken[node] && len(events) > len(longest) {
			longest = events
		}
	}
	return longest
}

// storyBook is a story with indexes.
type storyBook struct {
	events   []*clientv3.Event
	byKey    map[string][]*mvccpb.KeyValue // in order; a deletion has version 0
	byValue  map[string]*mvccpb.KeyValue
	at       map[int64][]*clientv3.Event
	last     int64
	problems []string
}

func newStoryBook(events []*clientv3.Event) *storyBook {
	s := &storyBook{
		events: events, byKey: make(map[string][]*mvccpb.KeyValue),
		byValue: make(map[string]*mvccpb.KeyValue), at: make(map[int64][]*clientv3.Event),
	}
	for _, e := range events {
		kv := e.Kv
		key := string(kv.Key)
		s.at[kv.ModRevision] = append(s.at[kv.ModRevision], e)
		s.last = kv.ModRevision
		before := s.keyAt(key, kv.ModRevision-1)
		if e.Type == clientv3.EventTypePut {
			version := int64(1)
			if before != nil {
				version = before.Version + 1
			}
			if kv.Version != version {
				s.problem("%s=%s at %d has version %d instead of %d", key, kv.Value, kv.ModRevision, kv.Version, version)
			}
			if twice := s.byValue[string(kv.Value)]; twice != nil {
				s.problem("%s=%s was done twice, at %d and %d", key, kv.Value, twice.ModRevision, kv.ModRevision)
			}
			s.byValue[string(kv.Value)] = kv
		} else if before == nil {
			s.problem("%s was deleted at %d, but it was not there", key, kv.ModRevision)
		}
		s.byKey[key] = append(s.byKey[key], kv)
	}
	return s
}

func (s *storyBook) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// keyAt is a key as of a revision, or nil.
func (s *storyBook) keyAt(key string, revision int64) *mvccpb.KeyValue {
	versions := s.byKey[key]
	i, _ := slices.BinarySearchFunc(versions, revision+1, func(kv *mvccpb.KeyValue, r int64) int {
		return int(kv.ModRevision - r)
	})
	if i == 0 || versions[i-1].Version == 0 {
		return nil
	}
	return versions[i-1]
}

// rangeAt are the keys with a prefix as of a revision, in order.
func (s *storyBook) rangeAt(prefix string, revision int64) []*mvccpb.KeyValue {
	var out []*mvccpb.KeyValue
	for _, key := range slices.Sorted(maps.Keys(s.byKey)) {
		if kv := s.keyAt(key, revision); kv != nil && strings.HasPrefix(key, prefix) {
			out = append(out, kv)
		}
	}
	return out
}

func sameKV(a, b *mvccpb.KeyValue) bool {
	return string(a.Key) == string(b.Key) && string(a.Value) == string(b.Value) && a.ModRevision == b.ModRevision &&
		a.CreateRevision == b.CreateRevision && a.Version == b.Version && a.Lease == b.Lease
}

// compare holds a watch's events against the story.
func (s *storyBook) compare(w *watched, fail func(format string, args ...any)) {
	if len(w.events) == 0 {
		return
	}
	from := slices.IndexFunc(s.events, func(e *clientv3.Event) bool { return e.Kv.ModRevision == w.events[0].Kv.ModRevision })
	for i, e := range w.events {
		if w.compacted && from >= 0 && i > 0 && w.events[i-1].Kv.ModRevision != e.Kv.ModRevision {
			from = slices.IndexFunc(s.events, func(o *clientv3.Event) bool { return o.Kv.ModRevision == e.Kv.ModRevision }) - i
		}
		if from < 0 || from+i >= len(s.events) || !sameKV(e.Kv, s.events[from+i].Kv) || e.Type != s.events[from+i].Type {
			fail("watch of %s: its event %d, %v, is not in the story there", w.node, i, e)
			return
		}
	}
}

// judge holds operations against the story.
func judge(s *storyBook, ops []*operation) []string {
	var out []string
	fail := func(o *operation, format string, args ...any) {
		out = append(out, fmt.Sprintf(format, args...)+": "+o.String())
	}
	for _, o := range ops {
		writes := o.value != ""
		event := s.byValue[o.value]
		switch {
		case o.returned == 0:
			fail(o, "never returned")
		case o.err != nil:
			if writes && event != nil && errors.Is(o.err, mvcc.ErrFenced) {
				fail(o, "refused, but done at %d", event.ModRevision)
			}
		case o.done && writes:
			if event == nil || event.ModRevision != o.revision || string(event.Key) != o.key {
				fail(o, "acknowledged, but lost or elsewhere (%v)", event)
			}
		case o.what == "list":
			if want := s.rangeAt(o.key, o.revision); !slices.EqualFunc(want, o.found, sameKV) {
				fail(o, "listed %v, but that revision has %v", o.found, want)
			}
		case o.done: // deleted
			if kv := s.keyAt(o.key, o.revision); kv != nil {
				fail(o, "deleted, but there")
			}
		default:
			kv := s.keyAt(o.key, o.revision)
			if (kv == nil) != (len(o.found) == 0) || kv != nil && !sameKV(kv, o.found[0]) {
				fail(o, "found %v, but that revision has %v", o.found, kv)
			}
			if writes && event != nil {
				fail(o, "not done, says the answer, but done at %d", event.ModRevision)
			}
			if o.what == "cas" && (kv == nil && o.was == 0 || kv != nil && kv.ModRevision == o.was) {
				fail(o, "not done, but it should have been")
			}
		}
		if o.done && (o.what == "cas" || o.what == "delete") {
			if kv := s.keyAt(o.key, o.revision-1); kv == nil && o.was != 0 || kv != nil && kv.ModRevision != o.was {
				fail(o, "done, but the key was another: %v", kv)
			}
		}
	}
	return append(append(out, judgeOrder(s, ops)...), judgeTerms(s, ops)...)
}

// judgeOrder looks for operations with revisions before what was known when
// they began.
func judgeOrder(s *storyBook, ops []*operation) []string {
	type moment struct {
		stamp uint64
		op    *operation
	}
	var moments []moment
	for _, o := range ops {
		if o.what == "peek" {
			continue
		}
		moments = append(moments, moment{o.called, o})
		if o.err == nil {
			moments = append(moments, moment{o.returned, o})
		}
	}
	slices.SortFunc(moments, func(a, b moment) int { return int(int64(a.stamp) - int64(b.stamp)) })
	var out []string
	var known int64
	for _, m := range moments {
		o := m.op
		if m.stamp == o.returned && o.err == nil {
			known = max(known, o.revision)
			continue
		}
		revision := o.revision
		if o.err != nil {
			event := s.byValue[o.value]
			if o.value == "" || event == nil {
				continue
			}
			revision = event.ModRevision
		}
		if revision < known || revision == known && (o.done || o.err != nil) {
			out = append(out, fmt.Sprintf("stale: revision %d was known before: %v", known, o))
		}
	}
	return out
}

func judgeTerms(s *storyBook, ops []*operation) []string {
	terms := make(map[string]uint64)
	for _, o := range ops {
		if o.what == "fenced" {
			terms[o.value] = o.term
		}
	}
	var out []string
	var newest uint64
	for _, e := range s.events {
		term, ok := terms[string(e.Kv.Value)]
		if !ok || e.Type != clientv3.EventTypePut {
			continue
		}
		if term < newest {
			out = append(out, fmt.Sprintf("%s=%s of term %d was done at %d after a write of term %d", e.Kv.Key, e.Kv.Value, term, e.Kv.ModRevision, newest))
		}
		newest = max(newest, term)
	}
	return out
}

// The judge finds what it is there to find.
func TestScenarioJudge(t *testing.T) {
	put := func(key, value string, revision, version int64) *clientv3.Event {
		return &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{
			Key: []byte(key), Value: []byte(value), ModRevision: revision, CreateRevision: revision - version + 1, Version: version,
		}}
	}
	story := []*clientv3.Event{put("k", "1", 2, 1), put("k", "2", 3, 2), put("k", "3", 4, 3)}
	write := func(value string, called, returned uint64, revision int64) *operation {
		return &operation{what: "put", key: "k", value: value, called: called, returned: returned, revision: revision, done: true}
	}
	lost := errors.New("who knows")
	for name, test := range map[string]struct {
		story []*clientv3.Event
		ops   []*operation
		want  string
	}{
		"right": {story, []*operation{
			write("1", 1, 2, 2), write("2", 3, 6, 3), write("3", 4, 5, 4), // 2 and 3 at the same time
			{what: "get", key: "k", called: 7, returned: 8, revision: 4, found: []*mvccpb.KeyValue{story[2].Kv}},
		}, ""},
		"open outcome": {story[:2], []*operation{
			write("1", 1, 2, 2), {what: "put", key: "k", value: "2", called: 3, returned: 4, err: lost},
			{what: "put", key: "k", value: "3", called: 3, returned: 4, err: lost},
		}, ""},
		"lost":  {story[:2], []*operation{write("3", 1, 2, 4)}, "lost"},
		"twice": {append(slices.Clone(story), put("k", "1", 5, 4)), nil, "done twice"},
		"stale": {story, []*operation{
			write("3", 1, 2, 4), {what: "get", key: "k", called: 3, returned: 4, revision: 3, found: []*mvccpb.KeyValue{story[1].Kv}},
		}, "stale"},
		"wrong value":   {story, []*operation{{what: "get", key: "k", called: 1, returned: 2, revision: 4, found: []*mvccpb.KeyValue{story[1].Kv}}}, "that revision has"},
		"late write":    {story, []*operation{write("3", 1, 2, 4), {what: "put", key: "k", value: "2", called: 3, returned: 4, err: lost}}, "stale"},
		"refused, done": {story, []*operation{{what: "fenced", key: "k", value: "2", term: 1, called: 1, returned: 2, err: mvcc.ErrFenced}}, "refused, but done"},
		"older term": {story, []*operation{
			{what: "fenced", key: "k", value: "2", term: 2, called: 1, returned: 5, revision: 3, done: true},
			{what: "fenced", key: "k", value: "3", term: 1, called: 2, returned: 6, revision: 4, done: true},
		}, "of term 1"},
	} {
		s := newStoryBook(test.story)
		found := strings.Join(append(s.problems, judge(s, test.ops)...), "\n")
		if (test.want == "") != (found == "") || !strings.Contains(found, test.want) {
			t.Errorf("%s: found %q", name, found)
		}
	}
}
