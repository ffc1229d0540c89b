// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/test/history"
)

// judge checks everything that the round has shown. Without its end, which err says, some checks make no sense.
func (r *round) judge(err error) []error {
	ops := r.h.all()
	r.say("%s", summary(ops))
	if err != nil {
		return []error{err}
	}
	var seqs []history.Sequence
	for _, w := range r.watchers {
		seqs = append(seqs, w.sequence())
	}
	errs := history.CheckSequences(seqs)
	rest := seqs[0].From(r.audited)
	for _, a := range r.audits {
		if err := history.CompareSequences(rest, a); err != nil {
			errs = append(errs, err)
		}
	}
	seen := history.NewTimeline(seqs[0].Events)
	errs = append(errs, history.Judge(slices.Concat(ops, r.fence.ops), seen)...)
	errs = append(errs, history.JudgeSerializable(ops)...)
	errs = append(errs, checkLeases(r.lease.tenancies, seen)...)
	r.totals = r.count(ops)
	r.totals.events = len(seqs[0].Events)
	r.say("%v; %d watchers, %d leases", r.totals, len(seqs), len(r.lease.tenancies))
	return errs
}

// summary counts outcomes, says why operations failed, and how long no client got a write done.
func summary(ops []*history.Op) string {
	count, why := map[string]int{}, map[string]int{}
	var ends []int64
	for _, o := range ops {
		count[o.Outcome]++
		if o.Outcome != history.OutcomeOK {
			why[o.Outcome+": "+o.Err]++
		} else if o.Wrote() {
			ends = append(ends, o.Return)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations: %d ok, %d refused, %d open", len(ops),
		count[history.OutcomeOK], count[history.OutcomeFailed], count[history.OutcomeMaybe])
	slices.Sort(ends)
	gap := int64(0)
	for i := 1; i < len(ends); i++ {
		gap = max(gap, ends[i]-ends[i-1])
	}
	fmt.Fprintf(&b, "; at most %.1f s without a write", time.Duration(gap).Seconds())
	reasons := slices.SortedFunc(maps.Keys(why), func(a, b string) int { return cmp.Compare(why[b], why[a]) })
	for _, reason := range reasons[:min(6, len(reasons))] {
		fmt.Fprintf(&b, "\n    %5d %s", why[reason], reason)
	}
	return b.String()
}

// keep writes the history to a file.
func (r *round) keep() {
	var seqs []history.Sequence
	for _, w := range r.watchers {
		seqs = append(seqs, w.sequence())
	}
	file := filepath.Join(r.c.dir, fmt.Sprintf("history-%d.json", r.seed))
	b, err := json.Marshal(map[string]any{
		"seed": r.seed, "operations": r.h.all(), "watches": append(seqs, r.audits...), "fenced": r.fence.ops,
		"leases": r.lease.tenancies,
	})
	if err == nil {
		err = os.WriteFile(file, b, 0o644)
	}
	r.say("the history: %s (%v); servers' logs: %s", file, err, r.c.logs())
}
