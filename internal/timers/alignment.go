// SPDX-License-Identifier: Apache-2.0

// This file aligns the periodic work of this process. Work with the same period is done at the same moment. Work with a
// longer period is done at a moment of each shorter period that divides it. So an idle processor is woken only once.
// Other processes and machines have other moments.

package timers

import "time"

var processStart = time.Now()

// Until returns the time until the next moment of a period. It is more than 0, and at most the period.
func Until(period time.Duration) time.Duration {
	past := time.Since(processStart) % period
	if past < 0 { // the clock of a test may be behind began
		past += period
	}
	return period - past
}
