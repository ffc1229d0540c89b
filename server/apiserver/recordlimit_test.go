// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnidentifiedRecordsAreLimited: of each source the first records of a minute are kept, up to a number of all
// sources; what is left out is reported once a minute, and at the end.
func TestUnidentifiedRecordsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []int
		l := &recordLimit{perSource: 3, total: 10, report: func(n int) { reports = append(reports, n) }}
		kept := func(remote string, n int) (kept int) {
			for range n {
				if l.allow(sourceOf(remote)) {
					kept++
				}
			}
			return kept
		}
		testenv.Equal(t, kept("192.0.2.1:1", 3), 3, "the first ones:")
		testenv.Equal(t, kept("192.0.2.1:2", 1000), 0, "more of a source:")
		testenv.Equal(t, kept("192.0.2.2", 5)+kept("::ffff:192.0.2.2", 5), 3, "another source:")
		testenv.Equal(t, kept("[2001:db8::1]:1", 2)+kept("2001:db8::2", 2), 3, "a network of IPv6:")
		all := 0
		for i := range 100 {
			all += kept(fmt.Sprintf("198.51.100.%d:1", i), 1)
		}
		testenv.Equal(t, all, 1, "the rest of all:")
		time.Sleep(recordInterval + time.Second) // by the fake clock
		testenv.True(t, slices.Equal(reports, []int{1000 + 7 + 1 + 99}), "reports: %v", reports)
		testenv.Equal(t, kept("192.0.2.1:1", 5), 3, "in the next minute:")
		l.flush()
		l.flush()
		time.Sleep(10 * recordInterval) // fake time
		testenv.True(t, slices.Equal(reports[1:], []int{2}), "reports: %v", reports)
	})
}
