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
	// holdFor is for how long a connection waits that comes while no server can be used: clients wait longer each time
	// that they are turned away (client-go's watches 30 s and more), and so are back at once. It is less than they give
	// a TLS handshake, which is 10 s. holdPause is between two attempts.
	holdFor, holdPause = 8 * time.Second, 250 * time.Millisecond
	// mostWaiting is how many connections may be without a server at a time; one more, and the one that has waited
	// longest is closed. The node's own parts have a few. Any program of this machine may connect, again and again
	// while no server replies, and each that waits costs a file descriptor and some goroutines.
	mostWaiting = 256
)

// pass joins a connection of this machine's to one with a server. It waits for a server if there was one before.
func (b *Balancer) pass(ctx context.Context, c net.Conn) {
	defer b.leave(accepted(c))
	if b.enter(accepted(c)) {
		_ = c.Close() // the client notices
		return
	}
	up, server, err := b.await(ctx, c)
	if err != nil {
		_ = c.Close() // the client sees that, and tries again
		return
	}
	b.join(ctx, c, up, server, func() { b.doubt(server) })
}

// await finds a server for a connection of this machine's. One whose client has ended it, or its way, waits for none.
func (b *Balancer) await(ctx context.Context, c net.Conn) (up net.Conn, server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.within(holdFor))
	var proving sync.WaitGroup
	defer proving.Wait()
	defer cancel()
	served, _ := b.waiting.Add(nil, func() { cancel(); _ = c.Close() }) // of a program of this machine; the table is never closed
	defer served()
	for {
		up, server, err = b.dial(ctx, b.candidates(), &proving, anyServer)
		if err == nil || ctx.Err() != nil || !b.everReached() || clientEnded(c) {
			return up, server, err
		}
		if !timers.Sleep(ctx, holdPause) {
			return nil, "", ctx.Err()
		}
	}
}

// everReached says whether a server has shown itself in this run.
func (b *Balancer) everReached() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.proved) > 0
}

// clientEnded says whether a client that waits has ended its connection, or its way. What it has said before is not
// read yet, so that a Read would not tell.
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
