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
	// maxAttempts is how many connections are tried at each address. Each begins attemptAfter later than the one
	// before, so that a single lost packet decides nothing. The kernel itself would wait a second before it repeats a
	// packet.
	maxAttempts  = 4
	attemptAfter = 150 * time.Millisecond
	// checkTimeout is the timeout of a check of a machine that replies at once. The timeout grows with the time that
	// the machine took when it was last reached.
	checkTimeout = 600 * time.Millisecond
	// roundTrips is the factor by which it grows with that time. maxTrip is the longest time that is taken into
	// account.
	roundTrips = 4
	maxTrip    = time.Second
	// firstCheckTimeout is the timeout for a machine whose time is not known, and for a machine that was unreachable.
	firstCheckTimeout = 3 * time.Second
	dialGrace         = 100 * time.Millisecond
)

// Check says whether a machine replies at one of the addresses, and how long that took.
type Check func(ctx context.Context, at []netip.AddrPort) (took time.Duration, ok bool)

// CheckTCP implements Check with TCP. A refused connection also counts as reached: the machine's kernel works, and pods
// run even when the agent does not.
func CheckTCP(ctx context.Context, at []netip.AddrPort) (time.Duration, bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	// If this process got no CPU time until the timeout, it can still see here what the kernel has received meanwhile.
	ctx, cancel := afterGrace(ctx)
	defer cancel() // ends the other attempts
	type reply struct {
		took time.Duration
		ok   bool
	}
	answers := make(chan reply, maxAttempts*len(at)) // has room for the result of each attempt
	for i := range maxAttempts {
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
	for range cap(answers) { // each attempt ends with ctx
		if a := <-answers; a.ok && !first.ok {
			first = a
			cancel()
		}
	}
	return first.took, first.ok
}

// afterGrace returns a context that ends a moment after this process has noticed that parent has ended.
func afterGrace(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() { time.AfterFunc(dialGrace, cancel) })
	return ctx, func() {
		stop()
		cancel()
	}
}

func connects(ctx context.Context, at netip.AddrPort) bool {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err == nil {
		_ = c.Close() // an accepted connection is all that is needed
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
