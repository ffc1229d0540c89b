// SPDX-License-Identifier: Apache-2.0

// This file is for work that this process does again and again: what is done with one period is done at the same
// moment, and longer periods at moments of the shorter ones that divide them, so that a processor at rest is woken
// once. Other processes, and machines, have other moments.

package timers

import "time"

var began = time.Now()

// Until is how long it is until the next moment of a period, which is more than nothing and at most the period.
func Until(period time.Duration) time.Duration {
	past := time.Since(began) % period
	if past < 0 { // a test's clock may be behind this process's
		past += period
	}
	return period - past
}
