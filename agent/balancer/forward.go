// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// maxForwarded is how many connections from other machines are forwarded at a time. With one more, the oldest of the
// source that has the most is closed.
const maxForwarded = 256

// SetLastResort sets the addresses that are said to be agents', and so no servers', although the operator may have
// named one of them: an agent forwards connections as long as it has a server. Such an address is used only if there is
// no other one. An address that has presented a server's certificate for itself is no agent, whatever other sources
// say.
func (b *Balancer) SetLastResort(agents []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.excluded)
	for _, a := range agents {
		b.excluded[a] = true
	}
}

// Forward forwards connections from other machines to a server until ctx is done, and returns when none is open. So a
// client that took this machine for a server reaches one. It uses only servers that the cluster has listed and whose
// certificate is for the dialed address: two machines that were made to join one another, or were servers once, would
// forward a connection forever. TLS is between the two ends.
func (b *Balancer) Forward(ctx context.Context, l net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	forwarded := connlimit.Table{Max: maxForwarded}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("passing connections on to a server: %w", err)
		}
		own, cancel := context.WithCancel(ctx)
		done, _ := forwarded.Add(c.RemoteAddr(), func() { cancel(); _ = c.Close() }) // the table is never closed
		running.Go(func() {
			defer cancel()
			defer done()
			b.forward(own, c)
		})
	}
}

func (b *Balancer) forward(ctx context.Context, c net.Conn) {
	var proving sync.WaitGroup
	defer proving.Wait()
	defer b.leave(accepted(c))
	if b.enter(accepted(c)) {
		_ = c.Close() // the client notices
		return
	}
	up, server, err := b.dial(ctx, b.namedServers(), &proving, b.reachesItself)
	if err != nil {
		_ = c.Close()
		return
	}
	b.join(ctx, c, up, server, nil) // no closedByServer: any program that can reach this port can make a server close connections
}

var errPassedOn = errors.New("its certificate is not for this address: another program may forward connections there, perhaps to " +
	"this machine")

// reachesItself returns an error for an address at which another program than the server itself presented its
// certificate.
func (b *Balancer) reachesItself(server string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.proved[server].itself {
		return fmt.Errorf("%s: %w", server, errPassedOn)
	}
	return nil
}

func (b *Balancer) namedServers() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.servers), func(s string) bool { return !b.named[s] || b.leftOut(s) })
}
