// SPDX-License-Identifier: Apache-2.0

// Package alpnmux shares one TCP port between several protocols over TLS. It reads the protocol names that a client
// offers in its ClientHello (ALPN, RFC 7301). It passes the connection, with every byte still to be read, to the route
// of the first name that has one. A connection that offers no such name, or is not TLS, goes to the default route.
//
// It owns the port and the connections that are not routed yet. It never does a TLS handshake and holds no key: each
// route does its own handshake, with its own certificates.
//
// Its goroutines: one that accepts, and one for each connection that is not routed yet, 1,024 at most.
package alpnmux

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

const (
	// defaultTimeout is how long a client may take to send its ClientHello, for which it does not have to wait for
	// anything.
	defaultTimeout = 10 * time.Second
	// MaxWaiting is how many connections of a port should wait at the same time, for their ClientHello or for their
	// route to accept them. Each costs a goroutine and a file descriptor.
	MaxWaiting = 1024
	// maxAcceptPause is the longest pause after a failed accept. An accept usually fails when there are no file
	// descriptors left.
	maxAcceptPause = time.Second
)

// Options configure a Mux.
type Options struct {
	// Listener accepts the connections of the port. The Mux closes it.
	Listener net.Listener
	// Timeout is how long a client may take for its ClientHello; 10 s when zero.
	Timeout time.Duration
	// Waiting bounds the connections that wait; nil is for MaxWaiting. Beyond that number, the oldest connection of the
	// source with the most is closed: clients that send nothing must not keep others out.
	Waiting *connlimit.Table
	// Logger logs errors of accepting connections; slog.Default() when nil.
	Logger *slog.Logger
}

// Mux is a port with routes. It accepts no connections before Accept is called on one of its routes.
type Mux struct {
	o          Options
	acceptOnce sync.Once
	running    sync.WaitGroup
	closed     chan struct{}

	mu       sync.Mutex
	routes   map[string]*route
	fallback *route
	open     int // number of routes that are not closed
	isClosed bool
}

// New makes a Mux with a default route only.
func New(o Options) *Mux {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	o.Waiting = cmp.Or(o.Waiting, &connlimit.Table{Max: MaxWaiting})
	o.Logger = cmp.Or(o.Logger, slog.Default())
	m := &Mux{o: o, routes: map[string]*route{}, closed: make(chan struct{})}
	m.fallback = m.newRoute()
	return m
}

// Default returns the listener for all connections that belong to no other route.
func (m *Mux) Default() net.Listener { return m.fallback }

// Route returns the listener for connections whose clients offer a protocol. Each protocol has one listener. After a
// listener is closed, it stays closed, and connections for it are closed.
func (m *Mux) Route(protocol string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.routes[protocol] == nil {
		m.routes[protocol] = m.newRoute()
	}
	return m.routes[protocol]
}

// Close closes the port, all routes and the waiting connections. It returns when all goroutines of the Mux have ended.
// Connections that a route has accepted belong to the route and stay open.
func (m *Mux) Close() error {
	err := m.closePort()
	m.acceptOnce.Do(func() {}) // accept is not started any more
	m.running.Wait()
	return err
}

func (m *Mux) closePort() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isClosed {
		return nil
	}
	m.isClosed = true
	close(m.closed)
	m.o.Waiting.Close()
	return m.o.Listener.Close()
}

// accept accepts connections until the port is closed. It does not pass errors of the port to the routes, because their
// servers would stop.
func (m *Mux) accept() {
	pause := time.Duration(0)
	for {
		c, err := m.o.Listener.Accept()
		if err == nil {
			pause = 0
			m.dispatch(c)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			_ = m.closePort() // the port's user may have closed it
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), maxAcceptPause)
		m.o.Logger.Warn("a connection could not be accepted; trying on", "port", m.o.Listener.Addr(), "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-m.closed:
			timer.Stop()
			return
		}
	}
}

// pendingConn is a connection that no route has accepted yet.
type pendingConn struct {
	net.Conn
	dropped chan struct{} // closed by drop
	once    sync.Once
}

func (p *pendingConn) closeConn() {
	p.once.Do(func() { close(p.dropped) })
	_ = p.Close() // no caller to report to
}

// dispatch routes a connection in a goroutine of its own.
func (m *Mux) dispatch(c net.Conn) {
	p := &pendingConn{Conn: c, dropped: make(chan struct{})}
	done, ok := m.o.Waiting.Add(c.RemoteAddr(), p.closeConn)
	if !ok {
		p.closeConn()
		return
	}
	m.running.Go(func() {
		defer done()
		m.route(p)
	})
}

func (m *Mux) route(p *pendingConn) {
	_ = p.SetDeadline(time.Now().Add(m.o.Timeout)) // fails only for a closed connection, which Read reports
	protocols, read, err := readHello(p.Conn)
	if err != nil {
		p.closeConn()
		return
	}
	_ = p.SetDeadline(time.Time{})
	to := m.find(protocols)
	select {
	case to.conns <- &conn{Conn: p.Conn, read: read}:
	case <-to.closed:
		p.closeConn()
	case <-p.dropped:
	}
}

func (m *Mux) find(protocols []string) *route {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range protocols {
		if r := m.routes[name]; r != nil {
			return r
		}
	}
	return m.fallback
}

// route is the listener for some of the port's connections.
type route struct {
	m      *Mux
	conns  chan net.Conn // unbuffered: a connection belongs to the Mux until a listener has it
	closed chan struct{}
	once   sync.Once
}

// newRoute adds a route. The caller holds mu, or is the only user of the Mux.
func (m *Mux) newRoute() *route {
	m.open++
	return &route{m: m, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept returns the next connection of the route. Its only error is net.ErrClosed.
func (r *route) Accept() (net.Conn, error) {
	r.m.acceptOnce.Do(func() { r.m.running.Go(r.m.accept) })
	select {
	case c := <-r.conns:
		return c, nil
	case <-r.closed:
	case <-r.m.closed:
	}
	return nil, net.ErrClosed
}

// Close closes the route. The port is closed with the last route.
func (r *route) Close() error {
	last := false
	r.once.Do(func() {
		close(r.closed)
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		r.m.open--
		last = r.m.open == 0
	})
	if last {
		return r.m.closePort()
	}
	return nil
}

func (r *route) Addr() net.Addr { return r.m.o.Listener.Addr() }
