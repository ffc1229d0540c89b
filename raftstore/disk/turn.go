// SPDX-License-Identifier: Apache-2.0

package disk

// A turn is a mutex for what may take long: writing. It is a channel of capacity
// one, full while it is held, since testing/synctest lets no time pass while
// a goroutine waits for a sync.Mutex; the disk that the holder waits for may be slow
// in a test's time.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// Lock waits until the turn is free.
func (t turn) Lock() { t <- struct{}{} }

// Unlock gives it back.
func (t turn) Unlock() { <-t }
