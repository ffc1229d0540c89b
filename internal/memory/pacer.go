// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// busyBelow is the time between two collections below which a process is at work: memory is then worth less than
	// the time that collecting it takes from requests.
	busyBelow = 2 * time.Second
	// idleAbove is the time above which it is at rest again. What lies between changes nothing, so that a process in
	// between does not swing.
	idleAbove = 10 * time.Second
	// busyRoom is how many bytes of garbage may pile up under load as long as that is at least half of what the
	// percentage for load allows. More would save little time, and at its largest a heap is as scattered as it will
	// stay: Go moves nothing, and a page of which one object lives on is not given back.
	busyRoom = 64 << 20
	// startRoom is how many bytes of garbage may pile up before the first collection.
	startRoom = 32 << 20
	// busyMost is how many bytes may where so much lives that half of it would be more, down to busyLeast percent. A
	// server of a thousand nodes with ten thousand pods has 600 MB: with 160 MB of garbage 36% of its processor time
	// under load was the collector's.
	busyMost  = 128 << 20
	busyLeast = 20
	// worthwhile is how many bytes of garbage may pile up under load from which on a burst's end is worth two
	// collections.
	worthwhile = 96 << 20
	// overEvery is the least time between the ends of two bursts: where work comes in bursts of its own accord, such as
	// every quarter of a minute, the two collections of all that lives and the pages that come back would be more work
	// than the garbage is worth.
	overEvery = time.Minute
	// idleRoom is how many bytes of garbage may pile up at rest as long as that is at least idleLeast percent: a server
	// of a thousand nodes has time to collect every few seconds, and half a gigabyte that lives.
	idleRoom  = 64 << 20
	idleLeast = 10
)

// Pacer chooses how much garbage may pile up by how often it is collected: little at rest, when a small heap costs
// nothing, and less still where much lives; and much under load: as much as lives while that is little, and half of
// that or less when it is not. It samples only when a collection has ended, and once after a burst of work that left
// much behind, so it never wakes an idle process. A nil Pacer chooses nothing, and no burst of work ends for it.
type Pacer struct {
	idle, busy int  // GOGC values, percent
	begun      bool // the start is over
	now        func() time.Time
	set        func(percent int)
	// heap tells how many collections Go began of its own accord, and of how many bytes Go takes its percentage: those
	// that outlived the last one, with stacks and globals.
	heap func() (automatic, live uint64)

	mu      sync.Mutex
	last    time.Time // of such a collection
	counted uint64    // their number then
	current int

	after   func(time.Duration, func()) stopper
	waiting stopper   // for the end of a burst; nil while there is none
	known   bool      // Ended was called since the last one's end
	ended   time.Time // when one was, the last time
	over    chan struct{}
}

// stopper is a time.Timer.
type stopper interface{ Stop() bool }

// NewPacer sets the value for a start, which holds until the first collection or Rest, and starts to sample. now is the
// clock.
func NewPacer(start, idle, busy int, now func() time.Time) *Pacer {
	p := &Pacer{
		idle: idle, busy: busy, now: now, set: func(percent int) { debug.SetGCPercent(percent) }, heap: heap, last: now(),
		after: func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) }, over: make(chan struct{}, 1),
	}
	var live uint64
	p.counted, live = heap()
	p.change(atStart(start, live))
	p.arm()
	return p
}

// BurstEnded has a value when a burst of work has ended that may have left much garbage behind, which Go would collect
// two minutes later: the process is to Rest, and to Trim.
func (p *Pacer) BurstEnded() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.over
}

// Ended says that work has ended which left much garbage behind, however much Go sees: BurstEnded has a value as after
// a burst. It returns at once.
func (p *Pacer) Ended() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = true
	p.await(true)
}

// Rest goes back to the value for rest at once.
func (p *Pacer) Rest() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, live := p.heap()
	p.begun = true
	p.change(atRest(p.idle, live))
}

// atStart returns the percentage for a start, given the one for a process that has collected nothing yet and how many
// bytes live: there may have been collections before a Pacer was made, as of an agent that waited for a server.
func atStart(start int, live uint64) int {
	return min(start, int(startRoom*100/max(live, 1)))
}

// sentinel is garbage whose finalizer tells that a collection has ended. It is large enough to be an allocation of its
// own: Go packs tiny objects together, and such a one might outlive many collections.
type sentinel struct{ _ [64]byte }

func (p *Pacer) arm() {
	runtime.SetFinalizer(&sentinel{}, func(*sentinel) {
		p.afterCollection()
		p.arm()
	})
}

// afterCollection decides after a collection. One that was asked for, as by Trim, says nothing about the load.
func (p *Pacer) afterCollection() {
	p.mu.Lock()
	defer p.mu.Unlock()
	automatic, live := p.heap()
	if automatic == p.counted {
		return
	}
	p.counted = automatic
	now := p.now()
	since := now.Sub(p.last)
	p.last = now
	switch {
	case since < busyBelow, !p.begun:
		p.change(underLoad(p.busy, live))
	case since > idleAbove:
		p.change(atRest(p.idle, live))
	}
	p.begun = true
	p.await(p.known || live/100*uint64(p.current) >= worthwhile && p.current > atRest(p.idle, live))
}

// await waits for a burst's end if there is one: that Go begins no collection for as long as makes a process one at
// rest, and longer if one ended a short time ago. The caller holds mu.
func (p *Pacer) await(burst bool) {
	if p.waiting != nil {
		p.waiting.Stop()
		p.waiting = nil
	}
	if burst {
		p.waiting = p.after(max(idleAbove, overEvery-p.now().Sub(p.ended)), func() {
			p.mu.Lock()
			p.ended, p.known = p.now(), false
			p.mu.Unlock()
			select {
			case p.over <- struct{}{}:
			default: // the one before was not received yet
			}
		})
	}
}

// atRest returns the percentage for rest, given the one for a small heap and how many bytes live.
func atRest(idle int, live uint64) int {
	percent := int(idleRoom * 100 / max(live, 1) / 5 * 5)
	return min(max(percent, idleLeast), idle)
}

// underLoad returns the percentage for load, given the one for a small heap and how many bytes live. Its steps are
// coarse, because a change of it stops the process for a moment.
func underLoad(busy int, live uint64) int {
	allowed := func(room uint64) int { return int(room * 100 / max(live, 1) / 5 * 5) }
	percent := max(min(allowed(busyRoom)/10*10, busy), busy/2)
	return min(percent, max(allowed(busyMost), min(busyLeast, busy/2)))
}

// heap asks the Go runtime.
func heap() (automatic, live uint64) {
	samples := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"},
		{Name: "/gc/scan/globals:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64(), samples[1].Value.Uint64() + samples[2].Value.Uint64() + samples[3].Value.Uint64()
}

func (p *Pacer) change(percent int) {
	if percent != p.current {
		p.current = percent
		p.set(percent)
	}
}
