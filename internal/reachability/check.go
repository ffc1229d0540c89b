// SPDX-License-Identifier: Apache-2.0

package reachability

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	// attempts are connections that are tried side by side, each so much later than the one before: a packet that is
	// lost decides nothing. The kernel itself would wait a second before it sends another one.
	attempts     = 4
	attemptAfter = 150 * time.Millisecond
	// patience bounds a check of a machine that answers at once. It grows with the time that the machine took when it
	// was reached last.
	patience = 600 * time.Millisecond
	// roundTrips is by how many times that, mostTrip how slow a machine may be.
	roundTrips = 4
	mostTrip   = time.Second
	// firstPatience is that for a machine of which no time is known, and for one that comes back.
	firstPatience = 3 * time.Second
	grace         = 100 * time.Millisecond
)

// Check says whether a machine answers at one of the addresses, and how long that took.
type Check func(ctx context.Context, at []netip.AddrPort) (took time.Duration, ok bool)

// CheckTCP is the Check by TCP. That a machine refuses the connection will do: its kernel works, and pods go on when
// the agent does not.
func CheckTCP(ctx context.Context, at []netip.AddrPort) (time.Duration, bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	// A process that got no CPU until its time was over finds here what the kernel has heard meanwhile.
	ctx, cancel := afterGrace(ctx)
	defer cancel() // the other attempts
	type reply struct {
		took time.Duration
		ok   bool
	}
	answers := make(chan reply, attempts*len(at)) // each has room for what it says
	for i := range attempts {
		for _, a := range at {
			go func() {
				select {
				case <-ctx.Done():
					answers <- reply{}
				case <-time.After(time.Duration(i) * attemptAfter):
					began := time.Now()
					ok := connects(ctx, a)
					answers <- reply{time.Since(began), ok}
				}
			}()
		}
	}
	var first reply
	for range cap(answers) { // each ends with ctx
		if a := <-answers; a.ok && !first.ok {
			first = a
			cancel()
		}
	}
	return first.took, first.ok
}

// afterGrace is a context that ends a moment after this process has noticed that its parent has.
func afterGrace(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() { time.AfterFunc(grace, cancel) })
	return ctx, func() {
		stop()
		cancel()
	}
}

func connects(ctx context.Context, at netip.AddrPort) bool {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err == nil {
		_ = c.Close() // that it was accepted is all there is to know
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
