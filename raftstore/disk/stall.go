// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// stall knows how long the writes that are under way have been. Raft waits for
// each of them in the goroutine that does everything else too, while its
// heartbeats go on: a leader with a stalled disk would keep leading. Who sends the
// heartbeats asks here first.
type stall struct {
	clock     clock.PassiveClock
	opened    time.Time
	log, vars underWay // each has one writer at a time

	mu    sync.Mutex
	since time.Time // when the present window began
	// slowest are the longest write of the present window and of the one before.
	slowest [2]time.Duration
	// began and took are of the write that began last among those that have ended.
	began time.Time
	took  time.Duration
}

// flushWindow is how long a slow write is remembered, at least, while others follow it. Who writes nothing learns
// nothing, and forgets nothing.
const flushWindow = 10 * time.Second

// flushed notes how long a write to the disk took that has succeeded.
func (s *stall) flushed(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	if now.Sub(s.since) > flushWindow {
		s.since, s.slowest = now, [2]time.Duration{0, s.slowest[0]}
	}
	s.slowest[0] = max(s.slowest[0], took)
	if began := now.Add(-took); began.After(s.began) {
		s.began, s.took = began, took
	}
}

func (s *stall) flushDuration() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.slowest[0], s.slowest[1])
}

// underWay is when a write began, in nanoseconds after opened plus one, or 0
// if there is none.
type underWay struct{ atomic.Int64 }

func newStall(c clock.PassiveClock) *stall { return &stall{clock: c, opened: c.Now()} }

// begin notes that a write begins. The caller is the slot's only writer.
func (s *stall) begin(slot *underWay) (end func()) {
	slot.Store(int64(s.clock.Since(s.opened)) + 1)
	return func() { slot.Store(0) }
}

// longest is how long the oldest of the writes has been under way.
func (s *stall) longest() time.Duration {
	oldest := s.log.Load()
	if since := s.vars.Load(); since != 0 && (oldest == 0 || since < oldest) {
		oldest = since
	}
	if oldest == 0 {
		return 0
	}
	return s.clock.Since(s.opened) - time.Duration(oldest-1)
}

// Stalled returns how long the oldest write of the log or of raft's variables
// that waits for the disk, or is tried again and again, has been doing so; 0
// if there is none. Snapshots do not count: raft does not wait for them. It
// takes no lock.
func (d *Dir) Stalled() time.Duration { return d.stall.longest() }

// FlushDuration returns how long a write of the log or of raft's variables took, flush included: the longest of the
// last ten to twenty seconds in which there were any.
func (d *Dir) FlushDuration() time.Duration { return d.stall.flushDuration() }

// FlushedWithin returns how long the write took that began last, flush included, if that was at most so long ago; false
// if none has ended that did.
func (d *Dir) FlushedWithin(ago time.Duration) (took time.Duration, ok bool) {
	d.stall.mu.Lock()
	defer d.stall.mu.Unlock()
	return d.stall.took, d.stall.clock.Since(d.stall.began) <= ago
}

// Flush writes a few bytes and flushes them, so that FlushedWithin knows how long that takes now. They are this
// process's number in the lock file, which is there already, so it needs no space.
func (d *Dir) Flush() error {
	start := d.stall.clock.Now()
	err := errors.Join(notePID(d.lock), d.space.faults.Strike(d.Vars.ctx, d.space.clock, false), unix.Fdatasync(int(d.lock.Fd())))
	if err == nil {
		d.stall.flushed(d.stall.clock.Since(start))
	}
	return err
}
