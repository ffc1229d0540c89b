// SPDX-License-Identifier: Apache-2.0

package history_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/history"
)

const testKey = "k"

// at gives an operation its times, and an id for messages.
func at(call, end int64, o history.Op) *history.Op {
	o.Call, o.Return, o.ID, o.Server = call, end, int(call), "s1"
	if o.Key == "" && o.Prefix == "" {
		o.Key = testKey
	}
	if o.Outcome == "" {
		o.Outcome = history.OutcomeOK
	}
	return &o
}

func put(value string, rev int64) history.Op {
	return history.Op{Kind: history.KindPut, Puts: []history.KV{{Key: testKey, Value: value}}, Rev: rev, Succeeded: true}
}

func cas(expect int64, value string, rev int64, ok bool, kvs ...history.KV) history.Op {
	return history.Op{Kind: history.KindCAS, Expect: expect, Puts: []history.KV{{Key: testKey, Value: value}}, Rev: rev, Succeeded: ok, KVs: kvs}
}

func got(rev int64, kvs ...history.KV) history.Op {
	return history.Op{Kind: history.KindGet, Rev: rev, KVs: kvs}
}

func kv(value string, create, mod, version int64) history.KV {
	return history.KV{Key: testKey, Value: value, Create: create, Mod: mod, Version: version}
}

func unanswered(outcome string, o history.Op) history.Op {
	o.Outcome, o.Err, o.Rev, o.Succeeded, o.Deleted = outcome, "timed out", 0, false, 0
	return o
}

func open(o history.Op) history.Op { return unanswered(history.OutcomeMaybe, o) }

func ofTerm(term uint64, o history.Op) history.Op {
	o.Term = term
	return o
}

func event(key, value string, create, mod, version int64) history.Event {
	return history.Event{KV: history.KV{Key: key, Value: value, Create: create, Mod: mod, Version: version}}
}

func deleted(key string, mod int64) history.Event {
	return history.Event{KV: history.KV{Key: key, Mod: mod}, Delete: true}
}

// TestJudgeDetectsBrokenContract feeds histories that break the contract, and some that do not, to the judge of runs.
// The watches saw a and b of the key, and its deletion, where nothing else is said.
func TestJudgeDetectsBrokenContract(t *testing.T) {
	a, b, gone := event(testKey, "a", 2, 2, 1), event(testKey, "b", 2, 3, 2), deleted(testKey, 4)
	remove := history.Op{Kind: history.KindDelete, Deletes: []string{testKey}, Rev: 4, Succeeded: true, Deleted: 1}
	again, later := remove, remove
	again.Deleted, later.Rev = 0, 5
	byValue := cas(0, "b", 3, true)
	byValue.Kind, byValue.ExpectV = history.KindCASValue, "x"
	ab, wroteA, openB := []history.Event{a, b}, at(0, 1, put("a", 2)), at(2, 3, open(put("b", 0)))
	for name, test := range map[string]struct {
		seen []history.Event
		ops  []*history.Op
		want string
	}{
		"fine": {[]history.Event{a, b, gone}, []*history.Op{
			wroteA, at(2, 3, got(2, a.KV)), at(4, 5, cas(2, "b", 3, true)), at(6, 7, cas(2, "c", 3, false, b.KV)),
			at(8, 9, remove), at(10, 11, got(4)), at(12, 13, again), at(14, 15, history.Op{Kind: history.KindSerializable, Rev: 3, KVs: []history.KV{b.KV}}),
		}, ""},
		"two at a time":                {ab, []*history.Op{at(0, 9, put("b", 3)), at(1, 8, put("a", 2)), at(2, 7, got(2, a.KV))}, ""},
		"stale read":                   {ab, []*history.Op{wroteA, at(2, 3, put("b", 3)), at(4, 5, got(2, a.KV))}, "stale"},
		"stale read of a newer state":  {ab, []*history.Op{wroteA, at(2, 3, put("b", 3)), at(4, 5, got(3, a.KV))}, "at that revision"},
		"read of another state":        {[]history.Event{a}, []*history.Op{wroteA, at(2, 3, got(2))}, "at that revision"},
		"serializable read of another": {[]history.Event{a}, []*history.Op{wroteA, at(2, 3, history.Op{Kind: history.KindSerializable, Rev: 2})}, "at that revision"},
		"lost write":                   {[]history.Event{a}, []*history.Op{wroteA, at(2, 3, put("b", 3))}, "no watch saw"},
		"write at another revision":    {[]history.Event{a}, []*history.Op{at(0, 1, put("a", 3))}, "no watch saw"},
		"write that a read sees twice": {ab, []*history.Op{wroteA, at(2, 3, put("b", 3)), at(4, 5, got(4, kv("b", 2, 4, 3)))}, "at that revision"},
		"write that is before a read":  {ab, []*history.Op{at(0, 1, put("b", 3)), at(2, 3, put("a", 2))}, "stale"},
		"two winners of a comparison": {[]history.Event{a, b, event(testKey, "c", 2, 4, 3)}, []*history.Op{
			wroteA, at(2, 5, cas(2, "b", 3, true)), at(3, 6, cas(2, "c", 4, true)),
		}, "comparison"},
		"comparison that ought to win":  {[]history.Event{a}, []*history.Op{wroteA, at(2, 3, cas(2, "b", 2, false, a.KV))}, "comparison"},
		"comparison lost, yet done":     {ab, []*history.Op{wroteA, at(2, 3, cas(1, "b", 3, false, b.KV))}, "not done, but the watches saw"},
		"comparison of another value":   {ab, []*history.Op{wroteA, at(2, 3, byValue)}, "comparison"},
		"deletion that is not seen":     {[]history.Event{a}, []*history.Op{wroteA, at(2, 3, remove)}, "deleted, but"},
		"deletion of nothing":           {[]history.Event{a, gone}, []*history.Op{wroteA, at(2, 3, remove), at(4, 5, later)}, "saw it delete 0"},
		"deletion that no client asked": {[]history.Event{a, gone}, []*history.Op{wroteA, at(2, 3, again)}, "no client asked"},
		"value that no client wrote":    {ab, []*history.Op{wroteA}, "no client asked"},
		"open write that happened":      {ab, []*history.Op{wroteA, at(2, 9, open(put("b", 0))), at(10, 11, got(3, b.KV))}, ""},
		"open write that happened late": {ab, []*history.Op{wroteA, openB, at(10, 11, got(2, a.KV)), at(12, 13, got(3, b.KV))}, ""},
		"open write that did not":       {[]history.Event{a}, []*history.Op{wroteA, openB}, ""},
		"open write that is too early":  {ab, []*history.Op{at(0, 1, put("b", 3)), at(2, 9, open(put("a", 0)))}, "stale"},
		"open write that was undone": {ab, []*history.Op{
			wroteA, at(2, 9, open(put("b", 0))), at(10, 11, got(3, b.KV)), at(12, 13, got(3, a.KV)),
		}, "at that revision"},
		"open comparison":           {ab, []*history.Op{at(0, 1, open(put("a", 0))), at(2, 3, open(cas(2, "b", 0, false)))}, ""},
		"open comparison that lost": {ab, []*history.Op{wroteA, at(2, 3, open(cas(1, "b", 0, false)))}, "comparison"},
		"open deletion":             {[]history.Event{a, gone}, []*history.Op{wroteA, at(2, 3, open(remove)), at(4, 5, got(4))}, ""},
		"open deletion too early":   {[]history.Event{a, gone}, []*history.Op{wroteA, at(2, 3, got(4)), at(4, 5, open(remove))}, "no client asked"},
		"refused, yet done": {[]history.Event{a}, []*history.Op{
			at(0, 1, unanswered(history.OutcomeFailed, put("a", 0))),
		}, "refused or not done, but the watches saw"},
		"half a list": {[]history.Event{a, event("l", "b", 2, 2, 1)}, []*history.Op{
			at(0, 1, history.Op{Kind: history.KindCAS, Rev: 2, Succeeded: true, Puts: []history.KV{{Key: testKey, Value: "a"}, {Key: "l", Value: "b"}}}),
			at(2, 3, history.Op{Kind: history.KindList, Prefix: "l", Rev: 2}),
		}, "at that revision"},
		"half a transaction": {[]history.Event{a}, []*history.Op{
			at(0, 1, open(history.Op{Kind: history.KindCAS, Puts: []history.KV{{Key: testKey, Value: "a"}, {Key: "l", Value: "b"}}})),
		}, "no watch saw l=b"},
		"older term":          {ab, []*history.Op{at(0, 5, ofTerm(2, put("a", 2))), at(1, 6, ofTerm(1, put("b", 3)))}, "after term 2"},
		"older term, in time": {ab, []*history.Op{at(0, 5, ofTerm(1, put("a", 2))), at(1, 6, ofTerm(2, put("b", 3)))}, ""},
		"open, of older term": {ab, []*history.Op{
			wroteA, at(2, 9, ofTerm(2, got(2, a.KV))), at(3, 9, open(ofTerm(1, put("b", 0)))),
		}, "after term 2"},
		"older term in a read": {[]history.Event{a}, []*history.Op{at(0, 1, ofTerm(1, put("a", 2))), at(2, 3, ofTerm(2, got(2, a.KV)))}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, errors.Join(history.Judge(test.ops, history.NewTimeline(test.seen))...), test.want)
		})
	}
}

// wantError fails unless the error says what is wanted, or is nil if nothing is.
func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestServersThatGoBackFail(t *testing.T) {
	answer := func(call, rev int64) *history.Op {
		return at(call, call+1, history.Op{Kind: history.KindSerializable, Rev: rev, Boot: 1})
	}
	wantError(t, errors.Join(history.JudgeSerializable([]*history.Op{answer(0, 3), answer(2, 2)})...), "before it")
	wantError(t, errors.Join(history.JudgeSerializable([]*history.Op{answer(0, 2), answer(2, 2)})...), "")
}

func TestRepeatedAndSkippedEventsAreDetected(t *testing.T) {
	a, b, c := event("x", "a", 2, 2, 1), event("x", "b", 2, 3, 2), event("y", "c", 4, 4, 1)
	twice := []history.Event{a, b, event("x", "b", 2, 4, 3)}
	skipped := []history.Event{a, event("x", "b", 2, 3, 3)}
	for name, test := range map[string]struct {
		one, other []history.Event
		want       string
	}{
		"fine":             {[]history.Event{a, b, c}, []history.Event{a, b, c}, ""},
		"missing":          {[]history.Event{a, b, c}, []history.Event{a, c}, "watcher two saw"},
		"repeated":         {[]history.Event{a, b, c}, []history.Event{a, b, b, c}, "two events in a revision"},
		"reordered":        {[]history.Event{a, b, c}, []history.Event{a, c, b}, "after revision 4"},
		"cut off":          {[]history.Event{a, b, c}, []history.Event{a, b}, "saw 3 events, watcher two 2"},
		"done twice":       {twice, twice, "was written before, at revision 3"},
		"version left out": {skipped, skipped, "should be version 2"},
		"deleted twice":    {[]history.Event{a, deleted("x", 3), deleted("x", 4)}, []history.Event{a, deleted("x", 3), deleted("x", 4)}, "not there"},
	} {
		t.Run(name, func(t *testing.T) {
			seqs := []history.Sequence{{Watcher: "one", Events: test.one}, {Watcher: "two", Events: test.other}}
			wantError(t, errors.Join(history.CheckSequences(seqs)...), test.want)
		})
	}
}
