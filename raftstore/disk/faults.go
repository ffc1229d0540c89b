// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// Faults make a disk behave badly, for tests of a whole server. They can be
// switched while a Dir is open. A nil *Faults, as in production, has none.
type Faults struct {
	mu      sync.Mutex
	delay   time.Duration
	slow    time.Duration // and so much longer, if it is a snapshot's
	err     error
	seem    bool
	changed chan struct{} // closed at the next change
	// reached, if set, is called between a write and its flush. For tests of
	// this package, which take a copy of the disk then.
	reached func()
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

func (f *Faults) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// strike holds a write up and returns the error it is to fail with. The end of
// ctx ends the delay.
func (f *Faults) strike(ctx context.Context, c clock.Clock) error {
	return f.hold(ctx, c, func() time.Duration { return f.delay })
}

// strikeSnapshot is strike for a snapshot.
func (f *Faults) strikeSnapshot(ctx context.Context, c clock.Clock) error {
	return f.hold(ctx, c, func() time.Duration { return f.delay + f.slow })
}

func (f *Faults) hold(ctx context.Context, c clock.Clock, delay func() time.Duration) error {
	if f == nil {
		return nil
	}
	if f.reached != nil {
		f.reached()
	}
	for start := c.Now(); ; {
		f.mu.Lock()
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		left, err, changed := delay()-c.Since(start), f.err, f.changed
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

// full says that the disk is to seem full.
func (f *Faults) full() bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seem || errors.Is(f.err, unix.ENOSPC)
}

// SeemFull makes the disk seem to have no free space, while writes still succeed: the reserve bears them.
func (f *Faults) SeemFull(full bool) { f.set(func() { f.seem = full }) }
