// SPDX-License-Identifier: Apache-2.0

package footprint

import (
	"runtime"
	"runtime/debug"
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
)

// Pacer chooses how much garbage may pile up by how often it is collected: little at rest, when a small heap costs
// nothing, and as much as Go's own default under load. It looks only when a collection has ended, so it never wakes an
// idle process.
type Pacer struct {
	idle, busy int // GOGC values, percent
	now        func() time.Time
	set        func(percent int)

	mu      sync.Mutex
	last    time.Time
	current int
}

// NewPacer sets the value for rest and starts to look. now is the clock.
func NewPacer(idle, busy int, now func() time.Time) *Pacer {
	p := &Pacer{idle: idle, busy: busy, now: now, set: func(percent int) { debug.SetGCPercent(percent) }, last: now()}
	p.Rest()
	p.arm()
	return p
}

// Rest goes back to the value for rest at once.
func (p *Pacer) Rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.change(p.idle)
}

// sentinel is garbage whose finalizer tells that a collection has ended. It is large enough to be an allocation of its
// own: Go packs tiny objects together, and such a one might outlive many collections.
type sentinel struct{ _ [64]byte }

func (p *Pacer) arm() {
	runtime.SetFinalizer(&sentinel{}, func(*sentinel) {
		p.collected()
		p.arm()
	})
}

// collected decides after a collection.
func (p *Pacer) collected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	since := now.Sub(p.last)
	p.last = now
	switch {
	case since < busyBelow:
		p.change(p.busy)
	case since > idleAbove:
		p.change(p.idle)
	}
}

func (p *Pacer) change(percent int) {
	if percent != p.current {
		p.current = percent
		p.set(percent)
	}
}
