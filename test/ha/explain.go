// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"os"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// explainAbove is how long a failover may take before what the servers' stores said meanwhile is printed.
func explainAbove() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("CORACLE_HA_EXPLAIN")); err == nil {
		return d
	}
	return 600 * time.Millisecond
}

// explain prints what the stores of servers have logged since a moment.
func (c *Cluster) explain(print func(format string, args ...any), servers []*harness.Server, since time.Time) {
	for _, s := range servers {
		log := testenv.Must(os.ReadFile(s.Log))(c.T)
		for line := range strings.Lines(string(log)) {
			stamp, message, _ := strings.Cut(line, " ")
			if at, err := time.Parse(time.RFC3339, stamp); err == nil && at.After(since) && strings.Contains(message, "part=store") {
				print("machine %d %5.0f ms %.220s", s.Number, ms(at.Sub(since)), strings.TrimSpace(message))
			}
		}
	}
}

// ms is a time in milliseconds.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
