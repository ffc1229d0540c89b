// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// never is the value of lastBytes while time without bytes is allowed.
const never = math.MaxInt64

// watch calls expire once when no byte moved for the time limit. A call of recordBytes costs an atomic store, and not a
// change of the timer.
type watch struct {
	limit     time.Duration
	expire    func()
	start     time.Time
	lastBytes atomic.Int64 // since start, or never

	mu      sync.Mutex // held while expire runs, so that stop waits for it
	timer   *time.Timer
	stopped bool
}

// startTimer starts the watch. With a limit of 0 it never expires.
func (w *watch) startTimer(limit time.Duration, expire func()) {
	w.limit, w.expire = limit, expire
	if limit == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start = time.Now()
	w.timer = time.AfterFunc(limit, w.check)
}

func (w *watch) recordBytes() {
	if w.limit != 0 {
		w.lastBytes.Store(int64(time.Since(w.start)))
	}
}

// pause stops the time until recordBytes is called.
func (w *watch) pause() { w.lastBytes.Store(never) }

func (w *watch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	left := w.limit
	if last := w.lastBytes.Load(); last != never {
		left -= time.Since(w.start) - time.Duration(last)
	}
	if left > 0 {
		w.timer.Reset(left)
		return
	}
	w.stopped = true
	w.expire()
}

// stop ends the watch. When it returns, expire has returned or will not be called.
func (w *watch) stop() {
	if w.timer == nil {
		return
	}
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	w.timer.Stop()
}

// timeouts limit how long an exchange takes.
type timeouts struct {
	idle     watch       // ends an exchange in which no byte moves
	deadline *watch      // ends an exchange that takes longer than the route allows; nil for none
	streams  atomic.Bool // time without bytes is allowed
}

// recordBytes records that bytes moved, unless time without bytes is allowed.
func (t *timeouts) recordBytes() {
	if !t.streams.Load() {
		t.idle.recordBytes()
	}
}

func (t *timeouts) stop() {
	t.idle.stop()
	if t.deadline != nil {
		t.deadline.stop()
	}
}
