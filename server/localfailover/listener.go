// SPDX-License-Identifier: Apache-2.0

// Package localfailover passes the requests of a server machine's own programs, mainly of its node, to another server
// while this one cannot serve them. These programs know the API only by its loopback address.
//
// It owns the connections over loopback, and the copies of those that are passed on. TLS is end to end between the
// program and the other server, whose certificate contains the loopback addresses, too. The package never decides when
// to fail over. It never passes on connections of other machines: those know other servers, and no other server's
// certificate contains the address that they have dialled.
//
// A server that listens only on another address gets its machine's requests there. The machine's kubeconfigs still
// expect a loopback address in the certificate (Options.Bound).
//
// Its goroutines: two for each connection that is passed on, 256 at most; one that waits for the decision at a start.
package localfailover

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/relay"
)

const (
	// dialTimeout limits connecting to one of the other servers.
	dialTimeout = 2 * time.Second
	// maxPassed is how many connections are passed on concurrently. A node has a few, but any program of the machine
	// may connect.
	maxPassed = 256
)

// All fields of Options are required, except Bound.
type Options struct {
	// Listener accepts the connections to the API.
	Listener net.Listener
	// Servers returns the addresses of the other servers, in the order in which they are tried.
	Servers func() []string
	// Bound says that the listener has one address, which this machine's programs use, too.
	Bound  bool
	Logger *slog.Logger
}

// Listener is the API server's listener.
type Listener struct {
	net.Listener
	o       Options
	ctx     context.Context // done after End
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu         sync.Mutex
	failedOver bool
	ended      bool
	hadServer  bool // there is an API server, or was one
	begun      *earlyConns
	loggedNone bool                            // it was logged that no other server is available
	localConns map[*localConn]struct{}         // this machine's connections that the API server has
	passed     map[net.Conn]context.CancelFunc // this machine's connections to other servers, pending or established
}

// New returns a Listener that passes nothing on yet. It then has no goroutine.
func New(o Options) *Listener {
	l := &Listener{Listener: o.Listener, o: o, localConns: map[*localConn]struct{}{}, passed: map[net.Conn]context.CancelFunc{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// localConn is a connection from this machine that the API server has accepted.
type localConn struct {
	net.Conn
	l *Listener
}

func (c *localConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.localConns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// Accept returns the next connection that this server has to serve.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.nextConn()
		if err != nil || !l.fromHere(c) {
			return c, err
		}
		if mine := l.accept(c); mine != nil {
			return mine, nil
		}
	}
}

// fromHere says whether a program of this machine opened a connection. A remote address that equals the local address
// proves that: the kernel drops packets from outside that have it.
func (l *Listener) fromHere(c net.Conn) bool {
	from, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok || from.IP.IsLoopback() || !l.o.Bound {
		return ok && from.IP.IsLoopback()
	}
	to, ok := c.LocalAddr().(*net.TCPAddr)
	return ok && from.IP.Equal(to.IP)
}

// accept returns a connection of this machine if this server has to serve it, and passes it on otherwise.
func (l *Listener) accept(c net.Conn) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.failedOver:
		mine := &localConn{Conn: c, l: l}
		l.localConns[mine] = struct{}{}
		return mine
	case len(l.passed) == maxPassed:
		_ = c.Close() // the client tries again
	default:
		ctx, cancel := context.WithCancel(l.ctx)
		l.passed[c] = cancel
		l.running.Go(func() { l.passOn(ctx, c) })
	}
	return nil
}

// FailOver sets whether this machine's programs are passed on to another server. Their connections are closed, so that
// they connect again. A second call with true also closes the connections that are passed on, as the target is then
// another server.
func (l *Listener) FailOver(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loggedNone = false
	l.failedOver = on && !l.ended
	for _, cancel := range l.passed {
		cancel()
	}
	if !l.failedOver {
		return
	}
	for c := range l.localConns {
		_ = c.Conn.Close() // the API server notices
	}
}

// End closes the listener and the connections that are passed on, and returns when none is left.
func (l *Listener) End() {
	l.mu.Lock()
	l.ended, l.failedOver = true, false
	l.mu.Unlock()
	l.cancel()
	_ = l.Listener.Close() // the API server may have closed it
	l.running.Wait()
	if b := l.begun; b != nil {
		for c := range b.conns {
			_ = c.Close() // there never was an API server
		}
	}
}

// passOn joins a connection with one to another server until ctx is done.
func (l *Listener) passOn(ctx context.Context, c net.Conn) {
	defer func() {
		_ = c.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.passed[c]()
		delete(l.passed, c)
	}()
	up, err := l.dial(ctx)
	if err != nil {
		l.logNoServer(ctx, err)
		return
	}
	defer up.Close()
	relay.Join(ctx, c, up, nil)
}

// logNoServer logs once that no other server is available.
func (l *Listener) logNoServer(ctx context.Context, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() == nil && !l.loggedNone {
		l.loggedNone = true
		l.o.Logger.Warn("no server can serve API requests of this machine's programs, neither this one nor another one; the programs retry",
			"error", err)
	}
}

// dial connects to the first of the other servers that accepts.
func (l *Listener) dial(ctx context.Context) (net.Conn, error) {
	errs := []error{errors.New("no other server accepts a connection")}
	for _, server := range l.o.Servers() {
		c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", server)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
