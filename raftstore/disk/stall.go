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

// stall measures how long the writes that are under way have taken. Raft waits for each of them in its main loop, while
// its heartbeats continue, so a leader with a stalled disk would stay leader. So the sender of the heartbeats asks
// stall first.
type stall struct {
	clock     clock.PassiveClock
	openedAt  time.Time
	log, vars underWay // each has one writer at a time

	mu          sync.Mutex
	windowStart time.Time // when the present window began
	// slowest are the durations of the longest write of the present window and of the one before.
	slowest [2]time.Duration
	// lastBegan and lastTook are those of the write that began last among those that have ended.
	lastBegan time.Time
	lastTook  time.Duration
}

// flushWindow is how long a slow write is remembered at least, while others follow it. Without further writes nothing
// is forgotten.
const flushWindow = 10 * time.Second

// noteFlush notes the duration of a successful write to the disk.
func (s *stall) noteFlush(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	if now.Sub(s.windowStart) > flushWindow {
		s.windowStart, s.slowest = now, [2]time.Duration{0, s.slowest[0]}
	}
	s.slowest[0] = max(s.slowest[0], took)
	if began := now.Add(-took); began.After(s.lastBegan) {
		s.lastBegan, s.lastTook = began, took
	}
}

func (s *stall) flushDuration() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.slowest[0], s.slowest[1])
}

// underWay is when a write began, in nanoseconds after opened, plus one. It is 0 if no write is under way.
type underWay struct{ atomic.Int64 }

func newStall(c clock.PassiveClock) *stall { return &stall{clock: c, openedAt: c.Now()} }

// beginWrite records that a write begins. The returned function records its end. Only one goroutine at a time may use a
// slot.
func (s *stall) beginWrite(slot *underWay) (end func()) {
	slot.Store(int64(s.clock.Since(s.openedAt)) + 1)
	return func() { slot.Store(0) }
}

// longest returns for how long the oldest write under way has been so, 0 if there is none.
func (s *stall) longest() time.Duration {
	oldest := s.log.Load()
	if since := s.vars.Load(); since != 0 && (oldest == 0 || since < oldest) {
		oldest = since
	}
	if oldest == 0 {
		return 0
	}
	return s.clock.Since(s.openedAt) - time.Duration(oldest-1)
}

// Stalled returns for how long the oldest unfinished write of the log or of raft's variables has waited for the disk or
// been repeated, 0 if there is none. Snapshots do not count, since raft does not wait for them. Stalled takes no lock.
func (d *Dir) Stalled() time.Duration { return d.stall.longest() }

// FlushDuration returns how long a write of the log or of raft's variables took, flush included: the longest of the
// last ten to twenty seconds in which there were writes.
func (d *Dir) FlushDuration() time.Duration { return d.stall.flushDuration() }

// FlushedWithin returns how long the last write took, flush included, if it began at most so long ago. ok is false if
// no such write has ended.
func (d *Dir) FlushedWithin(ago time.Duration) (took time.Duration, ok bool) {
	d.stall.mu.Lock()
	defer d.stall.mu.Unlock()
	return d.stall.lastTook, d.stall.clock.Since(d.stall.lastBegan) <= ago
}

// Flush writes a few bytes and flushes them, so that FlushedWithin returns a present duration. The bytes are this
// process's number in the lock file. They are there already, so Flush needs no space.
func (d *Dir) Flush() error {
	start := d.stall.clock.Now()
	err := errors.Join(notePID(d.lock), d.space.faults.Strike(d.Vars.ctx, d.space.clock, false), unix.Fdatasync(int(d.lock.Fd())))
	if err == nil {
		d.stall.noteFlush(d.stall.clock.Since(start))
	}
	return err
}
