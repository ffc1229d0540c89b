// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"context"
	"time"
)

// Sleep waits for d, and says whether it passed before ctx was done.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
