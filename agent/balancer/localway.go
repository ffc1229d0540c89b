// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"net"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// lostAfter is how many probes of the local address in a row fail, listRetry apart, before the node lets servers
	// know.
	lostAfter = 2
	// probeTimeout is how long a probe may take from this machine to itself.
	probeTimeout = 2 * time.Second
)

// arrive counts a connection of this machine's until the function that it returns is called.
func (b *Balancer) arrive() (left func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.here++
	close(b.arrived)
	b.arrived = make(chan struct{})
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.here--; b.here == 0 {
			b.quiet.Send()
		}
	}
}

// asked takes the outcome of a request through the local address. After one that failed it probes the address: where no
// connection arrives, twice in a row, what is sent there was led elsewhere on this machine, refused or dropped, and
// connections that are open are of no use either. One that fails at the servers says nothing of this machine.
func (b *Balancer) asked(ctx context.Context, failed error) {
	for failed != nil && !b.reached(ctx) {
		if ctx.Err() != nil || b.missed(failed) {
			return
		}
		if !timers.Sleep(ctx, listRetry) {
			return
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.misses >= lostAfter {
		b.o.Logger.Info("the local address of the API is reached again", "address", b.o.Address)
	}
	b.misses = 0
}

// missed counts a probe that failed, and says whether there were enough of them.
func (b *Balancer) missed(reason error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.misses++; b.misses == lostAfter {
		b.o.Logger.Error("programs of this machine do not reach the local address of the API; its pods run on, "+
			"and the node will not be ready until that ends. "+
			"Check whether a firewall rule blocks it, and whether another program has that port (ss -lntp)", "address", b.o.Address,
			"reason", reason)
	}
	return b.misses >= lostAfter
}

// reached opens a connection to the local address, and says whether one arrives here.
func (b *Balancer) reached(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	b.mu.Lock()
	arrived := b.arrived
	b.mu.Unlock()
	c, err := b.dialLocal(ctx)
	if err != nil {
		return false
	}
	defer c.Close()
	select {
	case <-arrived:
		return true
	case <-ctx.Done(): // another program has the port
		return false
	}
}

// dialLocally is dialLocal, but in tests.
func (b *Balancer) dialLocally(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", b.listener.Addr().String())
}

// Watched are the servers to which the node keeps a connection by which they know that it lives. There are none while
// the node's own programs do not reach the API here: a kubelet without the API is not ready, and servers that hear the
// node would take it for ready.
func (b *Balancer) Watched() []string {
	b.mu.Lock()
	lost := b.misses >= lostAfter
	b.mu.Unlock()
	if lost {
		return nil
	}
	return b.Servers()
}
