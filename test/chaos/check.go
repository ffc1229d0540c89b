// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// errUnknown says that porcupine did not finish: nothing is proven then, which is a failure of its own kind.
var errUnknown = errors.New("porcupine did not finish in time: unknown")

// groupsOf sorts the operations that porcupine judges by the keys they belong to.
func groupsOf(ops []*Op) map[string][]*Op {
	groups := map[string][]*Op{}
	for _, op := range ops {
		if op.Kind == KindSerializable || op.Outcome == OutcomeFailed {
			continue // no promise; no effect
		}
		if op.Outcome == OutcomeMaybe && (op.Kind == KindGet || op.Kind == KindList) {
			continue // a read that nobody saw
		}
		groups[op.Group] = append(groups[op.Group], op)
	}
	return groups
}

// verdict is porcupine's on one group.
type verdict struct {
	group  string
	result porcupine.CheckResult
	info   porcupine.LinearizationInfo
	model  porcupine.Model
	pruned bool // only after dropping open writes that no watch ever saw
}

// judge asks porcupine about one group. Writes whose answers got lost multiply the orders to try. If that takes too
// long, those go that no watch ever saw: they did not happen until the end, so they are not needed to explain it.
func judge(group string, ops []*Op, seen *timeline, timeout time.Duration) verdict {
	model := modelOf(keysOf(ops))
	v := verdict{group: group, model: model}
	v.result, v.info = porcupine.CheckOperationsVerbose(model, operations(ops), timeout/5)
	if v.result == porcupine.Unknown && seen != nil {
		ops = slices.DeleteFunc(slices.Clone(ops), func(o *Op) bool {
			_, there := seen.byValue[firstValue(o)]
			return o.Outcome == OutcomeMaybe && firstValue(o) != "" && !there
		})
		v.pruned = true
		v.result, v.info = porcupine.CheckOperationsVerbose(model, operations(ops), timeout)
	}
	return v
}

func (v verdict) err() error {
	switch v.result {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("%s: %w", v.group, errUnknown)
	}
	return fmt.Errorf("%s is not linearizable", v.group)
}

func keysOf(ops []*Op) []string {
	keys := map[string]bool{}
	for _, o := range ops {
		if o.Key != "" {
			keys[o.Key] = true
		}
		for _, kv := range slices.Concat(o.Puts, o.KVs) {
			keys[kv.Key] = true
		}
		for _, k := range o.Deletes {
			keys[k] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

func operations(ops []*Op) []porcupine.Operation {
	out := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		end := o.Return
		if o.Outcome == OutcomeMaybe {
			end = Never
		}
		out[i] = porcupine.Operation{ClientId: o.Client, Input: o, Output: o, Call: o.Call, Return: end}
	}
	return out
}

func firstValue(o *Op) string {
	if len(o.Puts) > 0 {
		return o.Puts[0].Value
	}
	return o.Value
}

// checkAgainstEvents compares what clients were told with what the watches saw: acknowledged writes are there, once
// and at their revision; those refused are not; reads show the state of their revision.
func checkAgainstEvents(ops []*Op, seen *timeline) []error {
	var errs []error
	fail := func(o *Op, format string, args ...any) {
		if len(errs) < 20 {
			errs = append(errs, fmt.Errorf("%s: %s", describeOp(o), fmt.Sprintf(format, args...)))
		}
	}
	for _, o := range ops {
		switch o.Outcome {
		case OutcomeFailed:
			if e, there := seen.byValue[firstValue(o)]; there && firstValue(o) != "" {
				fail(o, "refused, but the watches saw %q", e)
			}
		case OutcomeOK:
			if o.writes() {
				checkWritten(o, seen, fail)
			} else if e, there := seen.byValue[firstValue(o)]; there && firstValue(o) != "" {
				fail(o, "not done, but the watches saw %q", e)
			}
			checkRead(o, seen, fail)
		}
	}
	return errs
}

func checkWritten(o *Op, seen *timeline, fail func(*Op, string, ...any)) {
	puts, deletes := o.Puts, o.Deletes
	switch {
	case o.Kind == KindDelete:
		deletes = []string{o.Key}
	case o.Kind != KindTxn:
		puts = []KV{{Key: o.Key, Value: o.Value}}
	}
	for _, kv := range puts {
		if e, there := seen.changed(kv.Key, o.Rev); !there || e.Delete || e.Value != kv.Value {
			fail(o, "acknowledged, but no watch saw %s=%s at that revision", kv.Key, kv.Value)
		}
	}
	for _, key := range deletes {
		// In a transaction it may have been gone before.
		if _, there := seen.at(key, o.Rev); there {
			fail(o, "acknowledged, but %s is there at that revision", key)
		}
	}
}

// checkRead checks what a read saw at its revision; also one that only promises to be of some revision.
func checkRead(o *Op, seen *timeline, fail func(*Op, string, ...any)) {
	switch o.Kind {
	case KindPut, KindDelete:
		return
	case KindCAS, KindCASValue, KindTxn:
		if o.Succeeded {
			return
		}
	case KindGet, KindSerializable:
		if kv, there := seen.at(o.Key, o.Rev); there != (len(o.KVs) == 1) {
			fail(o, "at that revision, the watches say, it was %+v (there: %v)", kv, there)
		}
	}
	for _, kv := range o.KVs {
		if at, _ := seen.at(kv.Key, o.Rev); at != kv {
			fail(o, "at that revision, the watches say, %s was %+v", kv.Key, at)
		}
	}
}

// checkRealTime checks that revisions follow time: what began after something had been answered is later.
func checkRealTime(ops []*Op) []error {
	type answered struct{ at, rev int64 }
	var ends []answered
	var begun []*Op
	for _, o := range ops {
		if o.Outcome != OutcomeOK || o.Kind == KindSerializable {
			continue
		}
		ends = append(ends, answered{o.Return, o.Rev})
		begun = append(begun, o)
	}
	slices.SortFunc(ends, func(a, b answered) int { return cmp.Compare(a.at, b.at) })
	slices.SortFunc(begun, func(a, b *Op) int { return cmp.Compare(a.Call, b.Call) })
	var errs []error
	rev, next := int64(0), 0
	for _, o := range begun {
		for next < len(ends) && ends[next].at < o.Call {
			rev = max(rev, ends[next].rev)
			next++
		}
		if (o.Rev < rev || (o.writes() && o.Rev == rev)) && len(errs) < 20 {
			errs = append(errs, fmt.Errorf("%s: revision %d had been answered before it began", describeOp(o), rev))
		}
	}
	return errs
}

// checkSerializable checks that what one process of a server answers does not go back in time, writes included.
func checkSerializable(ops []*Op) []error {
	type process struct {
		server string
		boot   int
		client int
	}
	last := map[process]*Op{}
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b *Op) int { return cmp.Compare(a.Call, b.Call) })
	var errs []error
	for _, o := range ops { // one client does one thing after the other
		if o.Outcome != OutcomeOK || o.Boot == 0 {
			continue
		}
		p := process{o.Server, o.Boot, o.Client}
		if before := last[p]; before != nil && o.Rev < before.Rev && len(errs) < 20 {
			errs = append(errs, fmt.Errorf("%s: before it, the same process answered %s", describeOp(o), describeOp(before)))
		}
		last[p] = o
	}
	return errs
}
