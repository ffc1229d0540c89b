// SPDX-License-Identifier: Apache-2.0

// Package notify wakes goroutines.
package notify

// Signal says that there is something to look at. It is received once, however often it was sent meanwhile.
type Signal chan struct{}

// New makes a signal that has not been sent.
func New() Signal { return make(Signal, 1) }

// Send never waits.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}
