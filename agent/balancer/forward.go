// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
)

// maxForwarded is how many connections of other machines are passed on at a time.
const maxForwarded = 256

// Exclude tells which addresses are said to be agents' and so no servers', although the operator may have named one of
// them: an agent passes connections on as long as there is something to pass them on to. Such an address is used only
// if there is no other one. What has itself shown a server's certificate is no agent, whatever source says so.
func (b *Balancer) Exclude(agents []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.excluded)
	for _, a := range agents {
		b.excluded[a] = true
	}
}

// Forward passes connections of other machines on to a server until ctx is done, and returns when none is left: who
// took this machine for a server gets one. Only to a server that the cluster has named, and that answers at its address
// itself: two machines that were made to join one another, or were servers once, would pass a connection on for ever.
// TLS goes on between the two ends.
func (b *Balancer) Forward(ctx context.Context, l net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	room := make(chan struct{}, maxForwarded)
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("passing connections on to a server: %w", err)
		}
		select {
		case room <- struct{}{}:
			running.Go(func() {
				b.forward(ctx, c)
				<-room
			})
		default:
			_ = c.Close() // too many: it may come again
		}
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
	b.join(ctx, c, up, server, nil) // any program that can reach this port can make a server close connections
}

var errPassedOn = errors.New("its certificate is not for this address: another program may forward connections there, and perhaps to " +
	"this machine")

// reachesItself is an error for an address at which not the server itself has shown its certificate.
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
