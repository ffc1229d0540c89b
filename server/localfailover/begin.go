// SPDX-License-Identifier: Apache-2.0

package localfailover

import (
	"context"
	"net"
)

// maxWaiting is how many connections of other machines wait for an API server that does not run yet. With one more,
// the connection that has waited longest is closed.
const maxWaiting = 64

// earlyConns holds the connections that are accepted before there is an API server.
type earlyConns struct {
	conns         chan net.Conn // for the API server, in order; closed after the last
	serverStarted chan struct{} // closed when there is an API server
}

// Begin accepts connections until there is an API server, which calls Accept. Until then, connections of this machine's
// programs are passed on to another server during a failover. Otherwise they are served by answer, which need not close
// them. Connections of other machines wait for the API server. Begin returns at once. It does nothing if there is an
// API server. It is called at most once.
func (l *Listener) Begin(answer func(net.Conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hadServer || l.ended {
		return
	}
	b := &earlyConns{conns: make(chan net.Conn, maxWaiting), serverStarted: make(chan struct{})}
	l.begun = b
	l.running.Go(func() { l.await(b, answer) })
}

func (l *Listener) await(b *earlyConns, answer func(net.Conn)) {
	defer close(b.conns)
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return // the next Accept returns the error
		}
		over := b.isOver()
		if over || !l.fromHere(c) {
			b.queue(c)
		} else if mine := l.accept(c); mine != nil {
			l.answer(mine, answer)
		}
		if over {
			return
		}
	}
}

// answer serves a connection in a goroutine of its own.
func (l *Listener) answer(c net.Conn, answer func(net.Conn)) {
	l.mu.Lock()
	many := len(l.localConns) > maxPassed
	l.mu.Unlock()
	if many {
		_ = c.Close() // the client tries again
		return
	}
	l.running.Go(func() {
		defer c.Close()
		defer context.AfterFunc(l.ctx, func() { _ = c.Close() })()
		answer(c)
	})
}

// queue queues a connection for the API server.
func (b *earlyConns) queue(c net.Conn) {
	for {
		select {
		case b.conns <- c:
			return
		default:
		}
		select {
		case oldest := <-b.conns:
			_ = oldest.Close()
		default: // the API server has just received it
		}
	}
}

func (b *earlyConns) isOver() bool {
	select {
	case <-b.serverStarted:
		return true
	default:
		return false
	}
}

// nextConn returns the next connection for Accept. Waiting connections come first.
func (l *Listener) nextConn() (net.Conn, error) {
	l.mu.Lock()
	b := l.begun
	if b != nil && !l.hadServer {
		close(b.serverStarted)
	}
	l.hadServer = true
	l.mu.Unlock()
	if b != nil {
		if c, ok := <-b.conns; ok {
			return c, nil
		}
	}
	return l.Listener.Accept()
}
