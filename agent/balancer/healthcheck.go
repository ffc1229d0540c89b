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

// On a machine whose processor is busy, this process receives replies late, runs its checks late, and ends probes by
// timeout before it has read the reply. None of that means that a server is unresponsive. A node that assumed so would
// close all connections of this machine to a healthy server: each costs a new handshake, on the machine that lacks
// processor time. So a delay of this process does not count: neither the time before a late check, nor a probe that
// took longer than its timeout (as server/liveness judges nodes).

const (
	// checkEvery is how often the servers with connections are checked. A server that vanished with its machine closes
	// nothing.
	checkEvery = time.Second
	// probeEvery is how often such a server has to present its certificate while no other traffic shows that it works.
	probeEvery = 2 * time.Second
	// probes is how many probes in a row may fail before a server's connections are closed.
	probes = 2
	// delayThreshold is by how much a check or a probe may be late before this machine is assumed to lack processor
	// time.
	delayThreshold = 250 * time.Millisecond
	// maxLateChecks is how many late checks or probes in a row are discounted. The next one counts as if it were in
	// time: a machine may stay like that for hours while a server is dead.
	maxLateChecks = 4
)

// probeState is what the checks have found out about a server since its last contact.
type probeState struct {
	lastContact     time.Time // the last contact; discounted time is not a contact
	failedProbes    int       // failed probes in a row
	probeBegan      time.Time // when the latest probe began
	lateProbes      int       // probes in a row that took longer than their timeout
	hostUnreachable bool      // the server's machine could not be reached
}

// watch checks the servers with connections.
func (b *Balancer) watch(ctx context.Context) {
	states := map[string]*probeState{}
	wait := timers.Until(checkEvery)
	next := time.NewTimer(wait)
	defer next.Stop()
	before := b.now() // when the last round of checks ended, which may be after the next was due
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
		case late > maxLateChecks:
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

// checkServer checks whether a server with connections responds, and closes them if it does not.
func (b *Balancer) checkServer(ctx context.Context, server string, l *probeState) {
	if b.leaveUnready(server) {
		return
	}
	yes, last := b.lastContact(server)
	again := !last.Equal(l.lastContact)
	l.lastContact = last
	if yes {
		if again {
			l.failedProbes, l.lateProbes = 0, 0
			b.dropStale(server, l)
		}
		return
	}
	if other := b.otherReady(server); other != "" {
		b.o.Logger.Warn("a server is unresponsive while another one answers; moving its connections to the other one", "server", server, "other",
			other)
		b.dropServer(server)
		return
	}
	began := b.now()
	if began.Sub(l.probeBegan) < probeEvery {
		return
	}
	l.probeBegan = began
	err := b.prove(ctx, server)
	if err == nil {
		l.failedProbes, l.lateProbes = 0, 0
		b.dropStale(server, l)
		return
	}
	if took := b.now().Sub(began); took > b.timeoutOr(dialTimeout)+delayThreshold && l.lateProbes < maxLateChecks {
		l.lateProbes++
		b.discountDelay(time.Time{}) // the next check follows at once, before contacts of other servers are read
		return
	}
	l.lateProbes = 0
	l.hostUnreachable = l.hostUnreachable || hostIsUnreachable(err)
	if l.failedProbes++; l.failedProbes >= probes && ctx.Err() == nil {
		l.failedProbes = 0
		b.o.Logger.Warn("a server does not answer any more; its connections are closed", "server", server, "error", err)
		b.dropServer(server)
	}
}

// dropStale closes the connections to a server that responds again after its machine could not be reached. Data that
// was sent over them meanwhile waits for TCP's retransmission timer, by now as long again as it has waited already. New
// connections do not wait.
func (b *Balancer) dropStale(server string, l *probeState) {
	if !l.hostUnreachable {
		return
	}
	l.hostUnreachable = false
	b.o.Logger.Info("a server is reachable again; closing its old connections, which would stay blocked longer than new ones", "server",
		server)
	b.closeAll(server)
}

// hostIsUnreachable reports whether a handshake failed because not even the kernel of the server's machine replied. The
// kernel replies for a process that is blocked or gets no processor time.
func hostIsUnreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, syscall.ECONNREFUSED)
}
