// SPDX-License-Identifier: Apache-2.0

package history

import (
	"cmp"
	"fmt"
	"slices"
)

// Judge returns what is wrong with the operations, given what the watches saw:
//
//   - an acknowledged write is there at its revision, all of it; one that was refused, or not done, is not there;
//   - every comparison came out as the key was, and every read shows the state of the revision that it names;
//   - what began after another had been answered has no smaller revision, and a greater one if it wrote. Since the
//     revisions give an order in which all answers are right, that is linearizability;
//   - keys that operations write are changed by nothing else;
//   - no write of a term comes behind what a later term wrote or answered.
//
// A write without an answer has happened if the watches saw it. A read without one promises nothing.
func Judge(ops []*Op, seen *Timeline) []error {
	j := &judgment{seen: seen}
	for _, o := range ops {
		j.answer(o)
	}
	known := j.order(ops)
	j.causes(ops, known)
	j.terms(ops)
	return j.errs
}

type judgment struct {
	seen *Timeline
	errs []error
}

func (j *judgment) fail(o *Op, format string, args ...any) {
	if len(j.errs) < 20 {
		j.errs = append(j.errs, fmt.Errorf("%s: %s", o, fmt.Sprintf(format, args...)))
	}
}

// done returns the revision at which an operation wrote, or which its answer names, and whether it wrote; zero if
// none is known.
func (j *judgment) done(o *Op) (rev int64, wrote bool) {
	if o.Outcome == OutcomeOK {
		return o.Rev, o.Wrote()
	}
	if len(o.Puts) > 0 {
		if e, there := j.seen.ByValue[o.Puts[0].Value]; there {
			return e.Mod, true
		}
	}
	return 0, false
}

// answer holds one operation against what was seen.
func (j *judgment) answer(o *Op) {
	rev, wrote := j.done(o)
	succeeded := o.Succeeded || wrote
	if o.Outcome == OutcomeFailed || o.Outcome == OutcomeOK && !succeeded {
		for _, kv := range o.Puts {
			if e, there := j.seen.ByValue[kv.Value]; there {
				j.fail(o, "refused or not done, but the watches saw %q", e)
			}
		}
	}
	if rev == 0 || o.Outcome == OutcomeFailed {
		return
	}
	before := rev
	if wrote {
		before--
	}
	switch kv, there := j.seen.At(o.Key, before); o.Kind {
	case KindCAS:
		if (kv.Mod == o.Expect) != succeeded {
			j.fail(o, "its comparison should not come out so: the key was %+v", kv)
		}
	case KindCASValue:
		if (there && kv.Value == o.ExpectV) != succeeded {
			j.fail(o, "its comparison should not come out so: the key was %+v (there: %v)", kv, there)
		}
	}
	if succeeded {
		j.written(o, rev, before)
		return
	}
	var want []KV
	if o.Prefix != "" {
		want = j.seen.Range(o.Prefix, rev)
	} else if kv, there := j.seen.At(o.Key, rev); there {
		want = []KV{kv}
	}
	if !slices.Equal(want, o.KVs) {
		j.fail(o, "at that revision, the watches say, it was %+v", want)
	}
}

func (j *judgment) written(o *Op, rev, before int64) {
	for _, kv := range o.Puts {
		if e, there := j.seen.changed(kv.Key, rev); !there || e.Delete || e.Value != kv.Value {
			j.fail(o, "acknowledged or begun, but no watch saw %s=%s at revision %d", kv.Key, kv.Value, rev)
		}
	}
	var deleted int64
	for _, key := range o.Deletes {
		if _, there := j.seen.At(key, rev); there {
			j.fail(o, "deleted, but %s is there at revision %d", key, rev)
		}
		if _, there := j.seen.At(key, before); there && rev != before {
			deleted++
		}
	}
	if len(o.Puts) == 0 && deleted != o.Deleted {
		j.fail(o, "the watches saw it delete %d", deleted)
	}
}

// order checks that revisions follow time, and returns the newest revision that had been answered before each
// operation began.
func (j *judgment) order(ops []*Op) map[*Op]int64 {
	begun := slices.SortedFunc(slices.Values(ops), func(a, b *Op) int { return cmp.Compare(a.Call, b.Call) })
	ended := slices.DeleteFunc(slices.Clone(ops), func(o *Op) bool {
		return o.Outcome != OutcomeOK || o.Kind == KindSerializable
	})
	slices.SortFunc(ended, func(a, b *Op) int { return cmp.Compare(a.Return, b.Return) })
	known := map[*Op]int64{}
	newest, next := int64(0), 0
	for _, o := range begun {
		for next < len(ended) && ended[next].Return < o.Call {
			newest = max(newest, ended[next].Rev)
			next++
		}
		known[o] = newest
		rev, wrote := j.done(o)
		if rev > 0 && o.Kind != KindSerializable && (rev < newest || wrote && rev == newest) {
			j.fail(o, "stale: revision %d had been answered before it began", newest)
		}
	}
	return known
}

// causes checks that each change of a key that operations write is one of theirs.
func (j *judgment) causes(ops []*Op, known map[*Op]int64) {
	values, deleters, keys := map[string]bool{}, map[string][]*Op{}, map[string]bool{}
	for _, o := range ops {
		for _, kv := range o.Puts {
			values[kv.Value], keys[kv.Key] = true, true
		}
		for _, key := range o.Deletes {
			deleters[key], keys[key] = append(deleters[key], o), true
		}
	}
	for key := range keys {
		for _, e := range j.seen.ByKey[key] {
			caused := values[e.Value]
			if e.Delete {
				caused = slices.ContainsFunc(deleters[key], func(o *Op) bool {
					return o.Wrote() && o.Rev == e.Mod || o.Outcome == OutcomeMaybe && known[o] < e.Mod
				})
			}
			if !caused && len(j.errs) < 20 {
				j.errs = append(j.errs, fmt.Errorf("no client asked for %q", e))
			}
		}
	}
}

// terms checks that what a term did is older than all that later terms did and answered.
func (j *judgment) terms(ops []*Op) {
	type act struct {
		op    *Op
		rev   int64
		wrote bool
	}
	var acts []act
	for _, o := range ops {
		if rev, wrote := j.done(o); o.Term > 0 && rev > 0 {
			acts = append(acts, act{o, rev, wrote})
		}
	}
	slices.SortFunc(acts, func(a, b act) int { return cmp.Compare(a.rev, b.rev) })
	newest := act{op: &Op{}}
	for _, a := range acts {
		if a.wrote && a.op.Term < newest.op.Term && a.rev > newest.rev {
			j.fail(a.op, "done at revision %d, after term %d had served revision %d", a.rev, newest.op.Term, newest.rev)
		}
		if a.op.Term > newest.op.Term {
			newest = a
		}
	}
}

// JudgeSerializable checks that what one process of a server answers does not go back in time, writes included.
func JudgeSerializable(ops []*Op) []error {
	type process struct {
		server string
		boot   int
		client int
	}
	last := map[process]*Op{}
	j := &judgment{}
	for _, o := range slices.SortedFunc(slices.Values(ops), func(a, b *Op) int { return cmp.Compare(a.Call, b.Call) }) {
		if o.Outcome != OutcomeOK || o.Boot == 0 {
			continue
		}
		p := process{o.Server, o.Boot, o.Client} // one client does one thing after the other
		if before := last[p]; before != nil && o.Rev < before.Rev {
			j.fail(o, "before it, the same process answered %s", before)
		}
		last[p] = o
	}
	return j.errs
}
