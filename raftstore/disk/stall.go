// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// stall knows how long the writes that are under way have been. Raft waits for
// each of them in the goroutine that does everything else too, while its
// heartbeats go on: a leader with a hung disk would keep leading. Who sends the
// heartbeats asks here first.
type stall struct {
	clock     clock.PassiveClock
	opened    time.Time
	log, vars underWay // each has one writer at a time
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
