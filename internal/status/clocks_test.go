// SPDX-License-Identifier: Apache-2.0

package status

import (
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestClockThatIsOffIsNamed: from 30 s on, whichever server reports, and never a clock that a majority agrees with.
func TestClockThatIsOffIsNamed(t *testing.T) {
	const day, unknown = 24 * time.Hour, time.Duration(1 << 62)
	for name, tt := range map[string]struct {
		ahead []time.Duration // of the first server, which reports
		want  []string        // the beginnings of the problems, and what they contain
	}{
		"one server":               {ahead: []time.Duration{0}},
		"all agree":                {ahead: []time.Duration{0, 29 * time.Second, -29 * time.Second}},
		"another one":              {ahead: []time.Duration{0, 2 * time.Second, 5 * time.Minute}, want: []string{"c: its clock is 5m0s ahead of those of the other servers"}},
		"the one that reports":     {ahead: []time.Duration{0, 400 * day, 400*day + time.Second}, want: []string{"a: its clock is 400 days behind those"}},
		"by more than is allowed":  {ahead: []time.Duration{0, 0, -3 * time.Hour}, want: []string{"c: its clock is 3h0m0s behind those of the other servers. Set it (NTP)"}},
		"two of five":              {ahead: []time.Duration{0, time.Hour, 0, -time.Hour, 0}, want: []string{"b: ", "d: "}},
		"two servers":              {ahead: []time.Duration{0, time.Minute}, want: []string{"the clocks of the servers differ, and no majority of them agrees. By the clock of a, that of b is 1m0s ahead of it."}},
		"half":                     {ahead: []time.Duration{0, 0, time.Hour, time.Hour}, want: []string{"the clocks of the servers differ"}},
		"one does not answer":      {ahead: []time.Duration{0, unknown, time.Hour}, want: []string{"the clocks of the servers differ"}},
		"an older one":             {ahead: []time.Duration{0, 0, unknown}},
		"two of three, one silent": {ahead: []time.Duration{0, time.Second, unknown}},
	} {
		t.Run(name, func(t *testing.T) {
			var servers []ClusterServer
			for i, ahead := range tt.ahead {
				s := ClusterServer{Name: string(rune('a' + i)), Self: i == 0, Answers: true}
				if i > 0 && ahead != unknown {
					s.ClockAhead, s.ClockWithin = ahead, time.Millisecond
				}
				servers = append(servers, s)
			}
			got := Clocks(servers)
			testenv.Require(t, len(got) == len(tt.want), "%q, want %q", got, tt.want)
			for i, want := range tt.want {
				testenv.True(t, strings.HasPrefix(got[i], want), "%q, want %q", got[i], want)
			}
			allowed := !strings.Contains(name, "more than") && !strings.Contains(name, "reports")
			for _, p := range got {
				testenv.False(t, allowed && strings.Contains(p, "does not lead"), "%q", p)
			}
		})
	}
}
