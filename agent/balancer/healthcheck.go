// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// On a machine whose processor others have, this process hears late what servers have answered, looks late, and gives
// its questions up before it has read the answers. None of that is a server's silence, and a node that takes it for
// that closes all connections of the machine's to a server that is well: each costs a new handshake, on the machine
// that has no processor time as it is. So what was late by itself does not count: the time between two looks of which
// the second one came late, and a question that took longer than it can have (as server/liveness judges nodes).

const (
	// checkEvery is how often the servers that have connections are looked after. One that has vanished with its
	// machine closes nothing.
	checkEvery = time.Second
	// probeEvery is how often such a server has to show its certificate while it is not heard otherwise.
	probeEvery = 2 * time.Second
	// probes is how many questions in a row a server may leave open.
	probes = 2
	// delayThreshold is by how much a look or a question may be late before this machine has to be assumed to be short
	// of processor time.
	delayThreshold = 250 * time.Millisecond
	// mostLate is how many looks or questions in a row do not count for being late, and the next one counts as one that
	// was not: a machine may be like that for hours, and a server dead meanwhile.
	mostLate = 4
)

// probeState is what looking after a server has found out since it was last heard.
type probeState struct {
	heard  time.Time // when that was: that a delay is discounted is no answer
	missed int       // questions in a row that it has left open
	asked  time.Time // the latest of them
	late   int       // questions in a row that took longer than they can have
	cut    bool      // there was no way to its machine
}

// watch looks after the servers that have connections.
func (b *Balancer) watch(ctx context.Context) {
	states := map[string]*probeState{}
	wait := timers.Until(checkEvery)
	next := time.NewTimer(wait)
	defer next.Stop()
	before := b.now() // the end of the last round, which may have taken longer than there is between two
	due := before.Add(wait)
	for late := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		wait = timers.Until(checkEvery)
		next.Reset(wait)
		now := b.now()
		switch late++; {
		case now.Sub(timers.Later(due, before)) <= delayThreshold:
			late = 0
		case late > mostLate:
			late = 0
			b.discountDelay(before.Add(checkEvery))
		default:
			b.discountDelay(before)
		}
		due = now.Add(wait)
		servers := b.inUse()
		maps.DeleteFunc(states, func(s string, _ *probeState) bool { return !slices.Contains(servers, s) })
		for _, server := range servers {
			if states[server] == nil {
				states[server] = &probeState{}
			}
			b.checkServer(ctx, server, states[server])
		}
		before = b.now()
	}
}

// checkServer looks whether a server that has connections is heard, and has them closed if it is not.
func (b *Balancer) checkServer(ctx context.Context, server string, l *probeState) {
	yes, last := b.heard(server)
	again := !last.Equal(l.heard)
	l.heard = last
	if yes {
		if again {
			l.missed, l.late = 0, 0
			b.dropStale(server, l)
		}
		return
	}
	if other := b.otherResponsive(server); other != "" {
		b.o.Logger.Warn("a server is unresponsive while another one answers; connections to it go there now", "server", server, "other",
			other)
		b.drop(server)
		return
	}
	began := b.now()
	if began.Sub(l.asked) < probeEvery {
		return
	}
	l.asked = began
	err := b.prove(ctx, server)
	if err == nil {
		l.missed, l.late = 0, 0
		b.dropStale(server, l)
		return
	}
	if took := b.now().Sub(began); took > b.within(dialTimeout)+delayThreshold && l.late < mostLate {
		l.late++
		b.discountDelay(time.Time{}) // the next look follows at once, before it is read what others have said meanwhile
		return
	}
	l.late = 0
	l.cut = l.cut || unreachable(err)
	if l.missed++; l.missed >= probes && ctx.Err() == nil {
		l.missed = 0
		b.o.Logger.Warn("a server does not answer any more; its connections are closed", "server", server, "error", err)
		b.drop(server)
	}
}

// discountDelay has the time since then, in which this machine was late, not count as anybody's silence.
func (b *Balancer) discountDelay(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for server, p := range b.proved {
		if p.at.IsZero() { // it was left
			continue
		}
		p.discounted = min(p.discounted+now.Sub(timers.Later(since, p.at)), now.Sub(p.at))
		b.proved[server] = p
	}
}

// dropStale closes the connections to a server that is heard again after there was no way to its machine. What was sent
// over them meanwhile waits for TCP, by now for as long again as it has waited already; a new connection does not.
func (b *Balancer) dropStale(server string, l *probeState) {
	if !l.cut {
		return
	}
	l.cut = false
	b.o.Logger.Info("there is a way to a server again; its connections of before are closed, since they would wait for longer", "server",
		server)
	b.closeAll(server)
}

// unreachable says whether a handshake failed since not even the kernel of the server's machine answered: it does for a
// process that is blocked or gets no processor time.
func unreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, syscall.ECONNREFUSED)
}
