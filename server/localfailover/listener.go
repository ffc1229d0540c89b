// SPDX-License-Identifier: Apache-2.0

// Package localfailover gives the programs of a server's own machine, its node above all, another server while this one
// cannot serve them. They know the API by its loopback address alone.
//
// It owns the connections that come over loopback, and the copies of those that are passed on. TLS goes on between the
// program and the other server, whose certificate names the loopback addresses too. It never decides when, and never
// passes on what comes from other machines: those know other servers, and the address that they have dialled is in no
// other one's certificate.
//
// A server that listens at one other address alone is asked there by its machine, whose kubeconfigs have it expect a
// loopback address in the certificate all the same (Options.Bound).
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
	// dialTimeout bounds connecting to one of the other servers.
	dialTimeout = 2 * time.Second
	// most is how many connections are passed on at a time. A node has a few; any program of the machine may connect.
	most = 256
)

// Options are all required but Bound.
type Options struct {
	// Listener has what comes for the API.
	Listener net.Listener
	// Servers are the addresses of the other servers in the order in which they are tried.
	Servers func() []string
	// Bound says that the listener has one address, which this machine's programs ask at, too.
	Bound  bool
	Logger *slog.Logger
}

// Listener is the API server's.
type Listener struct {
	net.Listener
	o       Options
	ctx     context.Context // done when it ends
	end     context.CancelFunc
	running sync.WaitGroup

	mu         sync.Mutex
	failedOver bool
	ended      bool
	served     bool // there is an API server, or was one
	begun      *begun
	loggedNone bool                            // that no other server could be had
	here       map[*own]struct{}               // of this machine's, which the API server has
	passed     map[net.Conn]context.CancelFunc // of this machine's, on the way to another server or there
}

// New makes a Listener that passes nothing on yet. At rest it has no goroutine.
func New(o Options) *Listener {
	l := &Listener{Listener: o.Listener, o: o, here: map[*own]struct{}{}, passed: map[net.Conn]context.CancelFunc{}}
	l.ctx, l.end = context.WithCancel(context.Background())
	return l
}

// own is a connection of this machine's that the API server has.
type own struct {
	net.Conn
	l *Listener
}

func (c *own) Close() error {
	c.l.mu.Lock()
	delete(c.l.here, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// Accept returns the next connection that is this server's.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.next()
		if err != nil || !l.fromHere(c) {
			return c, err
		}
		if mine := l.accept(c); mine != nil {
			return mine, nil
		}
	}
}

// fromHere says whether a program of this machine has opened a connection. No other machine's comes from the address
// that it leads to: the kernel drops packets that claim to.
func (l *Listener) fromHere(c net.Conn) bool {
	from, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok || from.IP.IsLoopback() || !l.o.Bound {
		return ok && from.IP.IsLoopback()
	}
	to, ok := c.LocalAddr().(*net.TCPAddr)
	return ok && from.IP.Equal(to.IP)
}

// accept returns a connection of this machine's if it is for this server, and passes it on otherwise.
func (l *Listener) accept(c net.Conn) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.failedOver:
		mine := &own{Conn: c, l: l}
		l.here[mine] = struct{}{}
		return mine
	case len(l.passed) == most:
		_ = c.Close() // the client tries again
	default:
		ctx, cancel := context.WithCancel(l.ctx)
		l.passed[c] = cancel
		l.running.Go(func() { l.pass(ctx, c) })
	}
	return nil
}

// FailOver says whether this machine's programs are to be given another server. Their connections are closed, so that
// they connect again. A second call with true closes what is passed on too: another server is the target then.
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
	for c := range l.here {
		_ = c.Conn.Close() // the API server notices
	}
}

// End closes the listener and what is passed on, and returns when nothing is.
func (l *Listener) End() {
	l.mu.Lock()
	l.ended, l.failedOver = true, false
	l.mu.Unlock()
	l.end()
	_ = l.Listener.Close() // the API server may have done so
	l.running.Wait()
	if b := l.begun; b != nil {
		for c := range b.conns {
			_ = c.Close() // no API server has come
		}
	}
}

// pass joins a connection to one with another server until ctx is done.
func (l *Listener) pass(ctx context.Context, c net.Conn) {
	defer func() {
		_ = c.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.passed[c]()
		delete(l.passed, c)
	}()
	up, err := l.dial(ctx)
	if err != nil {
		l.complain(ctx, err)
		return
	}
	defer up.Close()
	relay.Join(ctx, c, up, nil)
}

// complain says once that no other server could be had.
func (l *Listener) complain(ctx context.Context, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() == nil && !l.loggedNone {
		l.loggedNone = true
		l.o.Logger.Warn("no other server takes what the programs of this machine ask of the API, and this one cannot serve them; they try again",
			"error", err)
	}
}

// dial connects to the first of the other servers that accepts.
func (l *Listener) dial(ctx context.Context) (net.Conn, error) {
	errs := []error{errors.New("no server accepts")}
	for _, server := range l.o.Servers() {
		c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", server)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
