// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"context"
	"time"
)

// Signal says that there is something to look at. It is received once, however often it was sent meanwhile.
type Signal chan struct{}

// NewSignal makes a signal that has not been sent.
func NewSignal() Signal { return make(Signal, 1) }

// Send never waits.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Rounds calls round at once, then each time that the signal is sent, after waiting for more that long, and after the
// pause that round returned, if it is more than 0. It returns when ctx is done.
func (s Signal) Rounds(ctx context.Context, gather time.Duration, round func() (again time.Duration)) {
	for {
		var again <-chan time.Time
		if pause := round(); pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-s:
			if !Sleep(ctx, gather) {
				return
			}
		}
	}
}
