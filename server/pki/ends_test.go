// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEndingNamesAuthorities: each authority is named from 90 days before its end, with what to do.
func TestEndingNamesAuthorities(t *testing.T) {
	p, clock := open(t, t.TempDir(), today)
	testenv.Equal(t, p.Ending(), "", "at first:")
	clock.SetTime(today.Add(CALifetime - 91*24*time.Hour))
	testenv.Equal(t, p.Ending(), "", "91 days before the end:")
	for _, tt := range []struct {
		at   time.Duration
		want string
	}{{CALifetime - 89*24*time.Hour, " ends on 2047-02-24 12:00 UTC (in 89 days)"}, {CALifetime + time.Hour, " ended on 2047-02-24 12:00 UTC"}} {
		clock.SetTime(today.Add(tt.at))
		for _, s := range Signers() {
			testenv.True(t, strings.Contains(p.Ending(), string(s)+tt.want), "%s is not named: %s", s, p.Ending())
		}
		testenv.True(t, strings.Contains(strings.ToLower(p.Ending()), RenewalHint), "it does not say what to do: %s", p.Ending())
	}
}
