// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// judgeTimeout is porcupine's for a group of keys.
const judgeTimeout = 20 * time.Second

// judge checks everything that the round has shown. Without its end, which err says, some checks make no sense.
func (r *round) judge(err error) []error {
	ops := r.h.all()
	r.say("%s", summary(ops))
	if err != nil {
		return []error{err}
	}
	var seqs []Sequence
	for _, w := range r.watchers {
		seqs = append(seqs, w.sequence())
	}
	errs := checkSequences(seqs)
	rest := seqs[0].from(r.audited)
	for _, a := range r.audits {
		if err := compareSequences(rest, a); err != nil {
			errs = append(errs, err)
		}
	}
	seen := newTimeline(seqs[0].Events)
	errs = append(errs, checkAgainstEvents(ops, seen)...)
	errs = append(errs, checkRealTime(ops)...)
	errs = append(errs, checkSerializable(ops)...)
	errs = append(errs, r.fence.check(seen)...)
	errs = append(errs, r.lease.check(seen)...)
	pictures := 0
	for _, v := range judgeAll(ops, seen) {
		if v.pruned {
			r.say("porcupine needed help with %s: %s", v.group, v.result)
		}
		if err := v.err(); err != nil {
			if errs = append(errs, err); pictures < 3 {
				pictures++
				errs = append(errs, r.picture(v))
			}
		}
	}
	r.totals = r.count(ops)
	r.totals.events = len(seqs[0].Events)
	r.say("%v; %d watchers, %d leases", r.totals, len(seqs), len(r.lease.tenancies))
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func judgeAll(ops []*Op, seen *timeline) []verdict {
	var mu sync.Mutex
	var out []verdict
	var judging sync.WaitGroup
	slots := make(chan struct{}, 2) // cores
	for group, ops := range groupsOf(ops) {
		slots <- struct{}{}
		judging.Go(func() {
			v := judge(group, ops, seen, judgeTimeout)
			mu.Lock()
			defer mu.Unlock()
			if v.result == porcupine.Ok {
				v.info = porcupine.LinearizationInfo{} // large
			}
			out = append(out, v)
			<-slots
		})
	}
	judging.Wait()
	return out
}

// summary counts outcomes, says why operations failed, and how long nobody got a write done.
func summary(ops []*Op) string {
	count, why := map[string]int{}, map[string]int{}
	var ends []int64
	for _, o := range ops {
		count[o.Outcome]++
		if o.Outcome != OutcomeOK {
			why[o.Outcome+": "+o.Err]++
		} else if o.writes() {
			ends = append(ends, o.Return)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations: %d ok, %d refused, %d open", len(ops), count[OutcomeOK], count[OutcomeFailed], count[OutcomeMaybe])
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

// picture writes porcupine's visualization of a group, and says where.
func (r *round) picture(v verdict) error {
	file := filepath.Join(r.c.dir, "porcupine-"+strings.ReplaceAll(strings.Trim(v.group, "/"), "/", "-")+".html")
	if err := porcupine.VisualizePath(v.model, v.info, file); err != nil {
		return fmt.Errorf("no picture: %w", err)
	}
	return errors.New("its picture: " + file)
}

// keep writes the history to a file.
func (r *round) keep() {
	var seqs []Sequence
	for _, w := range r.watchers {
		seqs = append(seqs, w.sequence())
	}
	file := filepath.Join(r.c.dir, fmt.Sprintf("history-%d.json", r.seed))
	b, err := json.Marshal(map[string]any{
		"seed": r.seed, "operations": r.h.all(), "watches": append(seqs, r.audits...), "fenced": r.fence.writes, "reigns": r.fence.reigns,
		"leases": r.lease.tenancies,
	})
	if err == nil {
		err = os.WriteFile(file, b, 0o644)
	}
	r.say("the history: %s (%v); servers' logs: %s", file, err, r.c.logs())
}
