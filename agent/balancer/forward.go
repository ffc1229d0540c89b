// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// maxForwarded is how many connections from other machines are forwarded at a time. With one more, the oldest of the
// source that has the most is closed.
const maxForwarded = 256

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
	var verifying sync.WaitGroup
	defer verifying.Wait()
	defer b.removeEnd(pairOfAccepted(c))
	if b.recordEnd(pairOfAccepted(c)) {
		_ = c.Close() // the client notices
		return
	}
	up, server, err := b.dial(ctx, b.namedServers(), &verifying, b.checkNamed)
	if err != nil {
		_ = c.Close()
		return
	}
	b.forwardData(ctx, c, up, server, nil) // no closedByServer: any program that can reach this port can make a server close connections
}
