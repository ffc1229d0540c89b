// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"context"
	"log/slog"
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

// Later is the later of two times.
func Later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Retry calls f until it succeeds or ctx is done, with a pause behind each failure, and logs each new trouble once.
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
