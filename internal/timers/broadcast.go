// SPDX-License-Identifier: Apache-2.0

package timers

import "sync"

// Broadcast wakes all goroutines that wait for a change. Its zero value is ready for use.
type Broadcast struct {
	mu       sync.Mutex
	nextSend chan struct{} // nil while no goroutine waits
}

// Next returns a channel that the next Send closes. Call it before reading what may change.
func (b *Broadcast) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.nextSend == nil {
		b.nextSend = make(chan struct{})
	}
	return b.nextSend
}

// Send wakes the goroutines that wait. Call it after what has changed can be read.
func (b *Broadcast) Send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.nextSend != nil {
		close(b.nextSend)
		b.nextSend = nil
	}
}

// Value is a value whose changes goroutines can wait for. Its zero value holds the zero value of T.
type Value[T any] struct {
	mu      sync.Mutex
	current T
	changes Broadcast
}

// Get returns the value, and a channel that the next Set closes.
func (v *Value[T]) Get() (now T, changed <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current, v.changes.Next()
}

// Set replaces the value.
func (v *Value[T]) Set(now T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.current = now
	v.changes.Send()
}
