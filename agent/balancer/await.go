// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// holdFor limits how long a new connection waits while no server can be used. Clients back off longer after each
	// refused connection (client-go's watches 30 s and more), so those that wait reconnect at once. It is less than the
	// 10 s that clients give a TLS handshake. holdPause is the pause between two attempts.
	holdFor, holdPause = 8 * time.Second, 250 * time.Millisecond
	// maxWaiting is how many connections may wait for a server at a time. One more closes the connection that has
	// waited longest. The node's own parts have a few. Any program of this machine may connect, again and again while
	// no server replies, and each waiting connection costs a file descriptor and some goroutines.
	maxWaiting = 256
)

// joinToServer connects a connection from this machine to a server, and forwards the data. It waits for a server if one
// could be used in this run before.
func (b *Balancer) joinToServer(ctx context.Context, c net.Conn) {
	defer b.removeEnd(pairOfAccepted(c))
	if b.recordEnd(pairOfAccepted(c)) {
		_ = c.Close() // the client notices
		return
	}
	up, server, err := b.await(ctx, c)
	if err != nil {
		_ = c.Close() // the client notices, and tries again
		return
	}
	b.forwardData(ctx, c, up, server, func() { b.recordSilentClose(server) })
}

// await finds a server for a connection from this machine. It does not wait for one if the client has closed the
// connection or its sending side.
func (b *Balancer) await(ctx context.Context, c net.Conn) (up net.Conn, server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeoutOr(holdFor))
	var verifying sync.WaitGroup
	defer verifying.Wait()
	defer cancel()
	served, _ := b.waiting.Add(nil, func() { cancel(); _ = c.Close() }) // from this machine; the table is never closed
	defer served()
	for {
		up, server, err = b.dial(ctx, b.candidates(), &verifying, anyServer)
		if err == nil || ctx.Err() != nil || !b.everReached() || clientEnded(c) {
			return up, server, err
		}
		if !timers.Sleep(ctx, holdPause) {
			return nil, "", ctx.Err()
		}
	}
}

// clientEnded reports whether a waiting client has closed its connection, or its sending side. Read would not show
// that, since the data that the client sent before is not read yet.
func clientEnded(c net.Conn) (yes bool) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		asked := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(asked, 0)
		yes = err == nil && n > 0
	})
	return yes || err != nil
}
