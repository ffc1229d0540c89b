// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// confirmTimeout limits one confirmation: a machine that asked for the address repeats its request after a second.
	confirmTimeout = 500 * time.Millisecond
	// confirmPause is the pause after a failed confirmation, however many packets arrive: a leader without a majority
	// would ask the voters for each of them.
	confirmPause = 200 * time.Millisecond
	// defendEvery is the least time between two announcements against one machine's claim (RFC 5227, DEFEND_INTERVAL).
	defendEvery = 10 * time.Second
	// maxClaimants limits how many machines' claims are defended against in that time: each of their Ethernet addresses
	// may be invented.
	maxClaimants = 16
)

// announceAt are the times, after the first reply is allowed, at which a machine announces the address: packets get
// lost, and switches learn late.
var announceAt = []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second,
	10 * time.Second}

// Moment is a time by a clock that does not stop while the machine is suspended, and that cannot be set.
type Moment time.Duration

// Now returns the present Moment. It returns the latest one possible if the clock cannot be read.
func Now() Moment {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return Moment(1<<63 - 1) // without a clock nothing is allowed any more
	}
	return Moment(t.Nano())
}

// After returns the moment that is later by d.
func (m Moment) After(d time.Duration) Moment { return m + Moment(d) }

// Announcement is an address that this machine announces, as long as it may.
type Announcement struct {
	Address   netip.Addr
	Interface Interface
	// Confirm returns until when this machine may announce. It is called when the last such time has passed and a
	// machine asks for the address. Nothing is sent when it fails. So at rest it is not called at all.
	Confirm func(context.Context) (until Moment, err error)
	// Conflict is called with each other interface that uses the address, after this machine has defended it: at most
	// every ten seconds. It may be nil.
	Conflict func(other net.HardwareAddr)
	Logger   *slog.Logger
}

// Announce announces the address on the link, and replies to requests for it until ctx is done. It returns an error
// when it cannot continue: the interface was removed.
func Announce(ctx context.Context, a Announcement) error {
	s, err := open(a.Interface, a.Address)
	if err != nil {
		return err
	}
	r := &responder{a: a, n: a.Interface.neighbour(a.Address), send: s.write, now: Now, defendedAt: map[hw]Moment{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var announcing sync.WaitGroup
	defer announcing.Wait()
	announcing.Go(func() { r.announce(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = s.setDeadline(time.Unix(1, 0)) }) // ends the read
	defer stop()
	defer cancel()
	defer func() { _ = s.close() }()
	buffer := make([]byte, 2048)
	for ctx.Err() == nil {
		frame, err := s.read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("listening for questions for %s on %s: %w", a.Address, a.Interface.Name, err)
		}
		r.hear(ctx, frame)
	}
	return nil
}

// responder sends what may be sent. All frames are sent by transmit.
type responder struct {
	a    Announcement
	n    neighbour
	send func([]byte) error
	now  func() Moment

	mu            sync.Mutex
	defendUntil   Moment
	quietUntil    Moment // no confirmation is requested before
	defendedAt    map[hw]Moment
	loggedFailure string
}

func (r *responder) announce(ctx context.Context) {
	began := time.Now()
	for _, at := range announceAt {
		if !timers.Sleep(ctx, time.Until(began.Add(at))) {
			return
		}
		r.transmit(ctx, r.n.announcements()...)
	}
}

func (r *responder) hear(ctx context.Context, frame []byte) {
	h := r.n.hear(frame)
	if h.answer != nil {
		r.transmit(ctx, h.answer)
	}
	if h.conflicting == noHW || !r.mustDefend(h.conflicting) {
		return
	}
	if r.transmit(ctx, r.n.announcements()...) {
		r.mu.Lock()
		r.defendedAt[h.conflicting] = r.now()
		r.mu.Unlock()
		if r.a.Conflict != nil {
			r.a.Conflict(net.HardwareAddr(h.conflicting[:]))
		}
	}
}

// mustDefend reports whether a machine's claim is to be defended against. A claim for which that failed does not count:
// otherwise the next one would not be.
func (r *responder) mustDefend(claimant hw) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	maps.DeleteFunc(r.defendedAt, func(_ hw, at Moment) bool { return now >= at.After(defendEvery) })
	_, answered := r.defendedAt[claimant]
	return !answered && len(r.defendedAt) < maxClaimants
}

// transmit sends frames if this machine may. If the last confirmation has expired it first requests another. It reads
// the clock immediately before each frame: a process may be paused anywhere, for any time. It returns whether a frame
// was sent.
func (r *responder) transmit(ctx context.Context, frames ...[]byte) (sent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); now >= r.defendUntil {
		if now < r.quietUntil {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
		until, err := r.a.Confirm(ctx)
		cancel()
		if err != nil {
			r.quietUntil = r.now().After(confirmPause)
			r.logFailure(fmt.Errorf("it is not certain that this machine may: %w", err))
			return false
		}
		r.defendUntil = until
	}
	for _, frame := range frames {
		if r.now() >= r.defendUntil {
			return sent
		}
		if err := r.send(frame); err != nil {
			r.logFailure(err)
			return sent
		}
		sent = true
	}
	r.loggedFailure = ""
	return sent
}

// logFailure logs why this machine did not send, when the reason has changed.
func (r *responder) logFailure(err error) {
	if err.Error() == r.loggedFailure {
		return
	}
	r.loggedFailure = err.Error()
	r.a.Logger.Debug("a question for an announced address is not answered", "address", r.a.Address, "reason", err)
}
