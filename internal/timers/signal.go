// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"context"
	"time"
)

// Signal says that something has changed. It is received once, even if it was sent several times meanwhile.
type Signal chan struct{}

// NewSignal makes a signal that has not been sent.
func NewSignal() Signal { return make(Signal, 1) }

// Send sends the signal. It never blocks.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Replace puts a value into a channel of capacity 1, in place of one that waits there. It does not block, if no other
// goroutine sends.
func Replace[T any](latest chan T, v T) {
	select {
	case <-latest:
	default:
	}
	latest <- v
}

// Rounds calls round at once, and again each time that the signal is sent, after waiting for gather so that further
// signals are included. It also calls round after the pause that round returned, if that is more than 0. It returns
// when ctx is done.
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
