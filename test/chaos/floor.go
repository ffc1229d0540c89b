// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/test/history"
)

// totals count what happened in the rounds of a run. A run in which little happened proves little.
type totals struct {
	long time.Duration // of all rounds together

	ok, refused, open int // operations by outcome
	faults            int // that the nemesis did
	bitten            int // rounds' faults during which operations failed: those that had an effect
	leaderTerms       int // terms in which a leader was seen to answer
	fenced            int // writes with a term that took effect
	fenceRefused      int // writes with a term that were refused
	renewals          int // of leases, acknowledged
	atExpiry          int // leases renewed in the moment in which they expired
	tooLate           int // leases that were gone in that moment
	events            int // that the watchers saw
}

func (a totals) plus(b totals) totals {
	return totals{
		long: a.long + b.long, ok: a.ok + b.ok, refused: a.refused + b.refused, open: a.open + b.open,
		faults: a.faults + b.faults, bitten: a.bitten + b.bitten, leaderTerms: a.leaderTerms + b.leaderTerms,
		fenced: a.fenced + b.fenced, fenceRefused: a.fenceRefused + b.fenceRefused, renewals: a.renewals + b.renewals, events: a.events + b.events,
		atExpiry: a.atExpiry + b.atExpiry, tooLate: a.tooLate + b.tooLate,
	}
}

func (a totals) String() string {
	return fmt.Sprintf("in %v: operations %d ok, %d refused, %d open; %d faults, %d with failed operations; %d leaders; fenced writes %d done, %d refused; %d lease renewals, as they expired %d leases renewed and %d gone; %d events",
		a.long.Round(time.Second), a.ok, a.refused, a.open, a.faults, a.bitten, a.leaderTerms, a.fenced, a.fenceRefused, a.renewals, a.atExpiry, a.tooLate, a.events)
}

// count adds up the round's history.
func (r *round) count(ops []*history.Op) totals {
	sum := totals{long: r.long, faults: len(r.nemesis.strikes)}
	for _, o := range ops {
		switch o.Outcome {
		case history.OutcomeOK:
			sum.ok++
		case history.OutcomeFailed:
			sum.refused++
		default:
			sum.open++
		}
	}
	for _, s := range r.nemesis.strikes {
		if s.bit(ops) {
			sum.bitten++
		}
	}
	for _, o := range r.fence.ops {
		switch {
		case o.Kind == history.KindGet:
			sum.leaderTerms++
		case o.Outcome == history.OutcomeOK:
			sum.fenced++
		case o.Outcome == history.OutcomeFailed:
			sum.fenceRefused++
		}
	}
	sum.atExpiry, sum.tooLate = r.lease.atExpiry()
	for _, t := range r.lease.tenancies {
		sum.renewals += len(t.Kept) - 1 // the first one is when it was granted
	}
	return sum
}

// bit says whether an operation that was under way during the fault got no good answer.
func (s *strike) bit(ops []*history.Op) bool {
	return slices.ContainsFunc(ops, func(o *history.Op) bool {
		return o.Outcome != history.OutcomeOK && o.Call < s.To && o.Return > s.From
	})
}

// floors are what a minute of chaos has at least: about a twentieth of what two busy cores did, so that a slow machine
// passes and a run whose clients or faults do nothing fails. (Measured on two cores with load 18, a minute: 20,800
// operations, 18 faults, 17 of them with failed operations, 13 leaders, 6,250 fenced writes, 700 refused ones, 119
// renewals,
// 16,900 events, 143 leases renewed as they expired and 47 gone.)
var floors = []struct {
	what      string
	perMinute float64
	of        func(totals) int
}{
	{"successful operations", 1000, func(t totals) int { return t.ok }},
	{"operations without an answer", 5, func(t totals) int { return t.open }},
	{"faults", 3, func(t totals) int { return t.faults }},
	{"faults with failed operations", 2, func(t totals) int { return t.bitten }},
	{"leaders", 1, func(t totals) int { return t.leaderTerms }},
	{"fenced writes", 250, func(t totals) int { return t.fenced }},
	{"refusals of a write of another term", 25, func(t totals) int { return t.fenceRefused }},
	{"acknowledged lease renewals", 5, func(t totals) int { return t.renewals }},
	{"leases renewed as they expired", 7, func(t totals) int { return t.atExpiry }},
	{"leases gone as they expired", 2, func(t totals) int { return t.tooLate }},
	{"events", 800, func(t totals) int { return t.events }},
}

// checkFloors says of what too little happened for the run to prove anything.
func (a totals) checkFloors() []error {
	var errs []error
	for _, f := range floors {
		if want := f.perMinute * a.long.Minutes(); float64(f.of(a)) < want {
			errs = append(errs, fmt.Errorf("too quiet a run to prove anything: %d %s in %v, expected at least %.0f", f.of(a), f.what, a.long.Round(time.Second), want))
		}
	}
	return errs
}
