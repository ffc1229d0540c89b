// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"context"
	"log/slog"
	"time"
)

// Sleep waits for d. It returns false if ctx was done before.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Later returns the later of two times.
func Later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// ShorterWait returns the shorter of two waits. 0 means no wait.
func ShorterWait(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// Retry calls f until it succeeds or ctx is done, with a pause after each failure. It logs an error with the message
// trouble when the error differs from the one before.
func Retry(ctx context.Context, log *slog.Logger, pause time.Duration, trouble string, f func() error) {
	for last := ""; ; {
		err := f()
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != last {
			last = err.Error()
			log.Warn(trouble, "error", err)
		}
		if !Sleep(ctx, pause) {
			return
		}
	}
}
