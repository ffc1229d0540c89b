// SPDX-License-Identifier: Apache-2.0

package disk

// A writeLock is a mutex for writes, which may take long. It is a channel of capacity 1, full while it is held. With a
// sync.Mutex, testing/synctest would let no time pass while a goroutine waits for it, and the disk that the holder
// waits for may be slow in a test's time.
type writeLock chan struct{}

func newWriteLock() writeLock { return make(writeLock, 1) }

// Lock waits until the lock is free.
func (t writeLock) Lock() { t <- struct{}{} }

// Unlock releases the lock.
func (t writeLock) Unlock() { <-t }
