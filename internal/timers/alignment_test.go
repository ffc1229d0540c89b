// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Who waits for the next moment meets all who wait for that period, whenever they began.
func TestWaitersOfAPeriodWakeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const period = time.Second
		moments := map[time.Duration]bool{}
		for i := range 100 {
			wait := Until(period)
			testenv.Require(t, wait > 0 && wait <= period, "the next moment is in %v", wait)
			time.Sleep(wait) // fake time
			moments[time.Since(processStart)%period] = true
			if next := Until(period); next != period {
				t.Fatalf("at a moment the next one is in %v", next)
			}
			if i%2 == 0 && Until(2*period) != 2*period && Until(2*period) != period {
				t.Fatalf("two seconds do not end at a moment of one: %v", Until(2*period))
			}
			time.Sleep(time.Duration(i) * 7 * time.Millisecond) // fake time
		}
		testenv.False(t, len(moments) != 1, "%d different moments of a period: %v", len(moments), moments)
	})
}
