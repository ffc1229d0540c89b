// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const testKey = "k"

// at gives an operation its times, and an id for messages.
func at(call, end int64, o Op) *Op {
	o.Call, o.Return = call, end
	o.ID, o.Server = int(call), "s1"
	if o.Key == "" && o.Kind != KindList {
		o.Key = testKey
	}
	if o.Outcome == "" {
		o.Outcome = OutcomeOK
	}
	o.Group = "g"
	return &o
}

func put(value string, rev int64) Op { return Op{Kind: KindPut, Value: value, Rev: rev} }

func got(rev int64, kvs ...KV) Op { return Op{Kind: KindGet, Rev: rev, KVs: kvs} }

func kv(value string, create, mod, version int64) KV {
	return KV{Key: testKey, Value: value, Create: create, Mod: mod, Version: version}
}

func maybe(o Op) Op {
	o.Outcome, o.Err, o.Rev = OutcomeMaybe, "timed out", 0
	return o
}

// TestCheckerFails feeds histories that break the contract, and some that do not, to the checker that judges runs.
func TestCheckerFails(t *testing.T) {
	cas := func(expect int64, value string, rev int64, ok bool, kvs ...KV) Op {
		return Op{Kind: KindCAS, Expect: expect, Value: value, Rev: rev, Succeeded: ok, KVs: kvs}
	}
	tests := map[string]struct {
		ops  []*Op
		want porcupine.CheckResult
	}{
		"fine": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 3, got(2, kv("a", 2, 2, 1))), at(4, 5, cas(2, "b", 3, true)),
			at(6, 7, cas(2, "c", 3, false, kv("b", 2, 3, 2))), at(8, 9, Op{Kind: KindDelete, Rev: 4, Deleted: 1}), at(10, 11, got(4)),
		}, porcupine.Ok},
		"stale read": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 3, put("b", 3)), at(4, 5, got(2, kv("a", 2, 2, 1))),
		}, porcupine.Illegal},
		"stale read that claims a newer revision": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 3, put("b", 3)), at(4, 5, got(3, kv("a", 2, 2, 1))),
		}, porcupine.Illegal},
		"lost write": {[]*Op{at(0, 1, put("a", 2)), at(2, 3, got(2))}, porcupine.Illegal},
		"write done twice": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 3, put("b", 3)), at(4, 5, got(4, kv("b", 2, 4, 3))),
		}, porcupine.Illegal},
		"two winners of a comparison": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 5, cas(2, "b", 3, true)), at(3, 6, cas(2, "c", 4, true)),
		}, porcupine.Illegal},
		"comparison that should have won": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 3, cas(2, "b", 2, false, kv("a", 2, 2, 1))),
		}, porcupine.Illegal},
		"open write that happened": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 9, maybe(put("b", 0))), at(10, 11, got(3, kv("b", 2, 3, 2))),
		}, porcupine.Ok},
		"open write that happened late": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 9, maybe(put("b", 0))), at(10, 11, got(2, kv("a", 2, 2, 1))),
			at(12, 13, got(3, kv("b", 2, 3, 2))),
		}, porcupine.Ok},
		"open write that was undone": {[]*Op{
			at(0, 1, put("a", 2)), at(2, 9, maybe(put("b", 0))), at(10, 11, got(3, kv("b", 2, 3, 2))),
			at(12, 13, got(3, kv("a", 2, 2, 1))),
		}, porcupine.Illegal},
		"open comparison": {[]*Op{
			at(0, 1, maybe(put("a", 0))), at(2, 3, maybe(cas(2, "b", 0, false))), at(4, 5, got(3, kv("b", 2, 3, 2))),
		}, porcupine.Ok},
		"half a transaction": {[]*Op{
			at(0, 1, Op{Kind: KindTxn, Rev: 2, Succeeded: true, Puts: []KV{{Key: testKey, Value: "a"}, {Key: "l", Value: "b"}}}),
			at(2, 3, Op{Kind: KindList, Rev: 2, KVs: []KV{kv("a", 2, 2, 1)}}),
		}, porcupine.Illegal},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for group, ops := range groupsOf(test.ops) {
				testenv.Equal(t, judge(group, ops, nil, time.Minute).result, test.want, "")
			}
		})
	}
}

func event(key, value string, create, mod, version int64) Event {
	return Event{KV: KV{Key: key, Value: value, Create: create, Mod: mod, Version: version}}
}

func TestSequenceChecks(t *testing.T) {
	a, b, c := event("x", "a", 2, 2, 1), event("x", "b", 2, 3, 2), event("y", "c", 4, 4, 1)
	tests := map[string]struct {
		one, other []Event
		want       string
	}{
		"fine":      {[]Event{a, b, c}, []Event{a, b, c}, ""},
		"missing":   {[]Event{a, b, c}, []Event{a, c}, "watcher two saw"},
		"repeated":  {[]Event{a, b, c}, []Event{a, b, b, c}, "two events in a revision"},
		"reordered": {[]Event{a, b, c}, []Event{a, c, b}, "after revision 4"},
		"cut off":   {[]Event{a, b, c}, []Event{a, b}, "saw 3 events, watcher two 2"},
		"done twice": {[]Event{a, b, event("x", "b", 2, 4, 3)}, []Event{a, b, event("x", "b", 2, 4, 3)},
			"was written before, at revision 3"},
		"version left out": {[]Event{a, event("x", "b", 2, 3, 3)}, []Event{a, event("x", "b", 2, 3, 3)}, "should be version 2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := errors.Join(checkSequences([]Sequence{{Watcher: "one", Events: test.one}, {Watcher: "two", Events: test.other}})...)
			if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestOperationsAgainstEvents(t *testing.T) {
	seen := newTimeline([]Event{event(testKey, "a", 2, 2, 1), event(testKey, "b", 2, 3, 2)})
	refused := put("b", 0)
	refused.Outcome, refused.Err = OutcomeFailed, "no space"
	tests := map[string]struct {
		op   Op
		want string
	}{
		"fine":                   {put("a", 2), ""},
		"acknowledged, not done": {put("c", 4), "acknowledged, but no watch saw"},
		"wrong revision":         {put("a", 3), "acknowledged, but no watch saw"},
		"refused, yet done":      {refused, "refused, but the watches saw"},
		"lost comparison, yet done": {Op{Kind: KindCAS, Expect: 1, Value: "b", Rev: 3, KVs: []KV{kv("b", 2, 3, 2)}},
			"not done, but the watches saw"},
		"read":                  {got(2, kv("a", 2, 2, 1)), ""},
		"read of another state": {got(3, kv("a", 2, 2, 1)), "at that revision"},
		"serializable read of another state": {Op{Kind: KindSerializable, Rev: 3, KVs: []KV{kv("a", 2, 2, 1)}},
			"at that revision"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := errors.Join(checkAgainstEvents([]*Op{at(0, 1, test.op)}, seen)...)
			if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestOrderChecks(t *testing.T) {
	testenv.Equal(t, len(checkRealTime([]*Op{at(0, 1, put("a", 3)), at(2, 3, got(2))})), 1, "a read of the past:")
	testenv.Equal(t, len(checkRealTime([]*Op{at(0, 5, put("a", 3)), at(2, 3, got(2))})), 0, "a read meanwhile:")
	serializable := func(call, rev int64) *Op {
		o := at(call, call+1, Op{Kind: KindSerializable, Rev: rev})
		o.Boot = 1
		return o
	}
	testenv.Equal(t, len(checkSerializable([]*Op{serializable(0, 3), serializable(2, 2)})), 1, "a server that goes back:")
}

func TestFenceChecks(t *testing.T) {
	old, late := &fenced{Term: 2, Op: *at(0, 9, maybe(put("a", 0)))}, &fenced{Term: 2, Op: *at(1, 9, maybe(put("b", 0)))}
	seen := newTimeline([]Event{event(testKey, "a", 2, 2, 1), event(testKey, "b", 2, 5, 2)})
	testenv.Equal(t, len(checkFences([]*fenced{old, late}, []reign{{3, 4}}, seen)), 1, "a write of term 2 after term 3 had served:")
	testenv.Equal(t, len(checkFences([]*fenced{old}, []reign{{3, 4}}, seen)), 0, "a write of term 2 before term 3 had served:")
}

func TestLeaseChecks(t *testing.T) {
	ttl := int64(leaseTTL)
	expiredAt := func(when int64) *timeline {
		e := Event{KV: KV{Key: "x", Mod: 3}, Delete: true, At: when}
		return newTimeline([]Event{event("x", "a", 2, 2, 1), e})
	}
	held := []*tenancy{{Key: "x", Kept: []int64{0, ttl / 2}, Dropped: ttl}}
	testenv.Equal(t, len(checkLeases(held, expiredAt(ttl+1))), 1, "a key that vanished while it was held:")
	testenv.Equal(t, len(checkLeases(held, expiredAt(2*ttl))), 0, "a key that vanished in time:")
	testenv.Equal(t, len(checkLeases(held, newTimeline([]Event{event("x", "a", 2, 2, 1)}))), 1, "a key that stayed:")
}

func TestOutcomeOfEachError(t *testing.T) {
	for err, want := range map[error]string{
		nil:                              OutcomeOK,
		rpctypes.ErrNoSpace:              OutcomeFailed,
		rpctypes.ErrNoLeader:             OutcomeMaybe,
		rpctypes.ErrTimeout:              OutcomeMaybe,
		rpctypes.ErrLeaseNotFound:        OutcomeFailed,
		errors.New("connection refused"): OutcomeMaybe,
		grpcstatus.Error(grpccodes.Unavailable, "closing"):              OutcomeMaybe,
		grpcstatus.Error(grpccodes.FailedPrecondition, "it is fenced…"): OutcomeFailed,
	} {
		testenv.Equal(t, outcomeOf(err), want, "%v:", err)
	}
}
