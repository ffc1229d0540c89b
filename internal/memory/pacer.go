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
	// busyBelow is the time between two collections below which a process is under load. Memory is then worth less than
	// the time that requests lose to its collection.
	busyBelow = 2 * time.Second
	// idleAbove is the time between two collections above which the process is at rest again. A time in between changes
	// nothing, so that the process does not alternate between the two.
	idleAbove = 10 * time.Second
	// busyRoom is how many bytes of garbage may pile up under load, unless that is less than half of what the
	// percentage for load allows. More would save little time. It would also leave more pages in use: Go does not move
	// objects, and a page with one live object is not given back.
	busyRoom = 64 << 20
	// startRoom is how many bytes of garbage may pile up before the first collection.
	startRoom = 32 << 20
	// busyMost is how many bytes of garbage may pile up under load when so much memory is live that half of it would be
	// more, but not less than busyLeast percent. A server of a thousand nodes with ten thousand pods has 600 MB live.
	// With 160 MB of garbage, the collector took 36% of its processor time under load.
	busyMost  = 128 << 20
	busyLeast = 20
	// minGarbage is how many bytes of garbage under load justify two collections at the end of a burst.
	minGarbage = 96 << 20
	// overEvery is the least time between the ends of two bursts. Where work always comes in bursts, such as every
	// quarter of a minute, two collections of all live memory, and faults on the pages that were given back, would cost
	// more than the garbage is worth.
	overEvery = time.Minute
	// idleRoom is how many bytes of garbage may pile up at rest, but not less than idleLeast percent. A server of a
	// thousand nodes has half a gigabyte of live memory, and has time to collect every few seconds.
	idleRoom  = 64 << 20
	idleLeast = 10
)

// Pacer sets how much garbage may pile up, by the time between collections. At rest that is little, because collecting
// a small heap costs nothing, and still less when much memory is live. Under load it is as much as the live memory
// while that is small, and half of that or less when it is large. Pacer samples only at the end of a collection, and
// once after a burst of work that left much garbage. So it never wakes an idle process. A nil Pacer sets nothing and
// reports no end of a burst.
type Pacer struct {
	idle, busy int  // GOGC values, percent
	begun      bool // the start is over
	now        func() time.Time
	setGOGC    func(percent int)
	// heap returns how many collections Go began by itself, and the number of bytes to which GOGC applies: live bytes
	// after the last collection, with stacks and globals.
	heap func() (automatic, live uint64)

	mu            sync.Mutex
	lastAutomatic time.Time // time of the last collection that Go began by itself
	counted       uint64    // number of such collections at that time
	current       int

	afterFunc   func(time.Duration, func()) stopper
	waiting     stopper   // waits for the end of a burst; nil while there is no burst
	endReported bool      // Ended was called since the end of the last burst
	burstEnd    time.Time // end of the last burst
	burstEnded  chan struct{}
}

// stopper has the method of time.Timer that is used.
type stopper interface{ Stop() bool }

// NewPacer sets the value for a start, which holds until the first collection or Rest, and starts to sample. now is the
// clock.
func NewPacer(start, idle, busy int, now func() time.Time) *Pacer {
	p := &Pacer{
		idle: idle, busy: busy, now: now, setGOGC: func(percent int) { debug.SetGCPercent(percent) }, heap: readHeap, lastAutomatic: now(),
		afterFunc: func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) }, burstEnded: make(chan struct{}, 1),
	}
	var live uint64
	p.counted, live = readHeap()
	p.change(atStart(start, live))
	p.arm()
	return p
}

// BurstEnded returns a channel that receives when a burst of work has ended that may have left much garbage. Go itself
// would collect that two minutes later. The receiver calls Rest and Trim.
func (p *Pacer) BurstEnded() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.burstEnded
}

// Ended reports that work has ended which left much garbage, even if Go does not see it. BurstEnded then receives as
// after a burst. Ended returns at once.
func (p *Pacer) Ended() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endReported = true
	p.await(true)
}

// Rest sets the value for rest at once.
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

// atStart returns the percentage for a start. start is the percentage for a process without a collection so far, and
// live is the number of live bytes. There may have been collections before the Pacer was made, as in an agent that
// waited for a server.
func atStart(start int, live uint64) int {
	return min(start, int(startRoom*100/max(live, 1)))
}

// sentinel is garbage whose finalizer runs after a collection. It is large enough to have an allocation of its own: Go
// packs tiny objects into one allocation, and such an object might outlive many collections.
type sentinel struct{ _ [64]byte }

func (p *Pacer) arm() {
	runtime.SetFinalizer(&sentinel{}, func(*sentinel) {
		p.afterCollection()
		p.arm()
	})
}

// afterCollection sets the value after a collection. It ignores collections that the program requested, as Trim does,
// because they say nothing about the load.
func (p *Pacer) afterCollection() {
	p.mu.Lock()
	defer p.mu.Unlock()
	automatic, live := p.heap()
	if automatic == p.counted {
		return
	}
	p.counted = automatic
	now := p.now()
	since := now.Sub(p.lastAutomatic)
	p.lastAutomatic = now
	switch {
	case since < busyBelow, !p.begun:
		p.change(underLoad(p.busy, live))
	case since > idleAbove:
		p.change(atRest(p.idle, live))
	}
	p.begun = true
	p.await(p.endReported || live/100*uint64(p.current) >= minGarbage && p.current > atRest(p.idle, live))
}

// await waits for the end of a burst, if there is one. A burst has ended when Go began no collection for idleAbove, or
// for longer if another burst ended a short time ago. The caller holds mu.
func (p *Pacer) await(burst bool) {
	if p.waiting != nil {
		p.waiting.Stop()
		p.waiting = nil
	}
	if burst {
		p.waiting = p.afterFunc(max(idleAbove, overEvery-p.now().Sub(p.burstEnd)), func() {
			p.mu.Lock()
			p.burstEnd, p.endReported = p.now(), false
			p.mu.Unlock()
			select {
			case p.burstEnded <- struct{}{}:
			default: // the previous end of a burst was not received yet
			}
		})
	}
}

// atRest returns the percentage for rest. idle is the percentage for a small heap, and live is the number of live
// bytes.
func atRest(idle int, live uint64) int {
	percent := int(idleRoom * 100 / max(live, 1) / 5 * 5)
	return min(max(percent, idleLeast), idle)
}

// underLoad returns the percentage for load. busy is the percentage for a small heap, and live is the number of live
// bytes. The steps are coarse, because each change stops the process for a moment.
func underLoad(busy int, live uint64) int {
	allowed := func(room uint64) int { return int(room * 100 / max(live, 1) / 5 * 5) }
	percent := max(min(allowed(busyRoom)/10*10, busy), busy/2)
	return min(percent, max(allowed(busyMost), min(busyLeast, busy/2)))
}

// readHeap reads the metrics of the Go runtime.
func readHeap() (automatic, live uint64) {
	samples := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"},
		{Name: "/gc/scan/globals:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64(), samples[1].Value.Uint64() + samples[2].Value.Uint64() + samples[3].Value.Uint64()
}

func (p *Pacer) change(percent int) {
	if percent != p.current {
		p.current = percent
		p.setGOGC(percent)
	}
}
