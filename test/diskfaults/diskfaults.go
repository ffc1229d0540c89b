// SPDX-License-Identifier: Apache-2.0

// Package diskfaults makes a disk of the store behave badly, for tests of a whole server.
package diskfaults

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// Faults are for disk.Options. They can be switched while a disk.Dir is open.
type Faults struct {
	mu      sync.Mutex
	delay   time.Duration
	slow    time.Duration // and so much longer, if it is a snapshot's
	err     error
	seem    bool
	changed chan struct{} // closed at the next change
	// Reached, if set, is called between a write and its flush. For tests of
	// package disk, which take a copy of the disk then.
	Reached func()
}

// DelayFlushes makes each flush of the log, of raft's variables and of a
// snapshot take so much longer. Flushes that are being delayed follow a change
// at once; 0 lets them go.
func (f *Faults) DelayFlushes(d time.Duration) { f.set(func() { f.delay = d }) }

// DelaySnapshots makes the flush of a snapshot take that much longer still: as if
// there were much to write.
func (f *Faults) DelaySnapshots(d time.Duration) { f.set(func() { f.slow = d }) }

// FailWrites makes each write and flush of the log, of raft's variables and of
// a snapshot fail with this error; nil ends that. With unix.ENOSPC the disk also
// seems to have no free space.
func (f *Faults) FailWrites(err error) { f.set(func() { f.err = err }) }

// SeemFull makes the disk seem to have no free space, while writes still succeed: the reserve bears them.
func (f *Faults) SeemFull(full bool) { f.set(func() { f.seem = full }) }

func (f *Faults) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Strike delays a flush and returns the error it is to fail with. The end of
// ctx ends the delay.
func (f *Faults) Strike(ctx context.Context, c clock.Clock, snapshot bool) error {
	if f.Reached != nil {
		f.Reached()
	}
	for start := c.Now(); ; {
		f.mu.Lock()
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		left, err, changed := f.delay-c.Since(start), f.err, f.changed
		if snapshot {
			left += f.slow
		}
		f.mu.Unlock()
		if left <= 0 || ctx.Err() != nil {
			return err
		}
		timer := c.NewTimer(left)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C():
		}
		timer.Stop()
	}
}

// Full says that the disk is to seem full.
func (f *Faults) Full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seem || errors.Is(f.err, unix.ENOSPC)
}
