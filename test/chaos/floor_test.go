// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/history"
)

// usual is a minute on two busy cores.
var usual = totals{
	long: time.Minute, ok: 20_800, open: 240, faults: 18, bitten: 17, leaderTerms: 13,
	fenced: 6250, fenceRefused: 700, renewals: 119, events: 16_900, atExpiry: 143, tooLate: 47,
}

// TestRoundsWithoutAFaultFail: each thing that does not happen is found out, however much else does, and a usual run
// passes.
func TestRoundsWithoutAFaultFail(t *testing.T) {
	if errs := usual.checkFloors(); len(errs) > 0 {
		t.Errorf("a usual run fails: %v", errs)
	}
	if errs := (totals{long: time.Minute}).checkFloors(); len(errs) != len(floors) {
		t.Errorf("an empty run has %d errors, want %d: %v", len(errs), len(floors), errs)
	}
	for what, quiet := range map[string]func(*totals){
		"successful operations":               func(t *totals) { t.ok = 0 },
		"operations without an answer":        func(t *totals) { t.open = 0 },
		"faults with failed operations":       func(t *totals) { t.bitten = 0 },
		"leaders":                             func(t *totals) { t.leaderTerms = 0 },
		"fenced writes":                       func(t *totals) { t.fenced = 0 },
		"refusals of a write of another term": func(t *totals) { t.fenceRefused = 0 },
		"acknowledged lease renewals":         func(t *totals) { t.renewals = 0 },
		"leases renewed as they expired":      func(t *totals) { t.atExpiry = 0 },
		"leases gone as they expired":         func(t *totals) { t.tooLate = 0 },
	} {
		run := usual
		quiet(&run)
		if errs := run.checkFloors(); len(errs) != 1 || !strings.Contains(errs[0].Error(), "0 "+what) {
			t.Errorf("no %s: got %v", what, errs)
		}
	}
}

func TestFaultIsCreditedWithFailuresOfItsTime(t *testing.T) {
	s := &strike{From: 100, To: 200}
	for _, tt := range []struct {
		call, end int64
		outcome   string
		want      bool
	}{
		{110, 120, history.OutcomeMaybe, true}, {90, 110, history.OutcomeFailed, true},
		{190, 210, history.OutcomeMaybe, true}, {50, history.Never, history.OutcomeMaybe, true},
		{110, 120, history.OutcomeOK, false}, {50, 90, history.OutcomeMaybe, false}, {210, 220, history.OutcomeMaybe, false},
	} {
		if got := s.bit([]*history.Op{{Call: tt.call, Return: tt.end, Outcome: tt.outcome}}); got != tt.want {
			t.Errorf("%+v: got %t", tt, got)
		}
	}
}
