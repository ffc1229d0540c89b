// SPDX-License-Identifier: Apache-2.0

package disk

// A turn is a mutex for writes, which may take long. It is a channel of capacity 1, full while it is held. With a
// sync.Mutex, testing/synctest would let no time pass while a goroutine waits for it, and the disk that the holder
// waits for may be slow in a test's time.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// Lock waits until the turn is free.
func (t turn) Lock() { t <- struct{}{} }

// Unlock releases the turn.
func (t turn) Unlock() { <-t }
