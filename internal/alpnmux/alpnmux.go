// SPDX-License-Identifier: Apache-2.0

// Package alpnmux shares one TCP port between several protocols over TLS: it reads the protocol names that a client
// offers in its ClientHello (ALPN, RFC 7301) and gives the connection, with every byte still to be read, to the route
// of the first name that has one. What offers none of them, or is no TLS at all, goes to the default route.
//
// It owns the port and the connections that are not routed yet. It never does a TLS handshake and holds no key: each
// route does its own, with its own certificates.
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
	// defaultTimeout is how long a client may take for its ClientHello, which it sends without waiting for anything.
	defaultTimeout = 10 * time.Second
	// defaultWaiting is how many connections may wait at a time, for their ClientHello or for their route to take them.
	// Each costs a goroutine and a file descriptor.
	defaultWaiting = 1024
	// maxAcceptPause bounds the pause after an accept that failed, for want of file descriptors usually.
	maxAcceptPause = time.Second
)

// Options configure a Mux.
type Options struct {
	// Listener is the port. The Mux closes it.
	Listener net.Listener
	// Timeout is how long a client may take for its ClientHello; 10 s when zero.
	Timeout time.Duration
	// Waiting is how many connections may wait; 1024 when zero. One more, and the oldest of the source that has
	// the most is closed: clients that say nothing must not keep others out.
	Waiting int
	// Logger logs a port that does not accept; slog.Default() when nil.
	Logger *slog.Logger
}

// Mux is a port with routes. Nothing is accepted before a route is asked for its first connection.
type Mux struct {
	o       Options
	begin   sync.Once
	running sync.WaitGroup
	closed  chan struct{}
	waiting connlimit.Table

	mu       sync.Mutex
	routes   map[string]*route
	fallback *route
	open     int // routes that are not closed
	ended    bool
}

// New makes a Mux with a default route and no other.
func New(o Options) *Mux {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Waiting <= 0 {
		o.Waiting = defaultWaiting
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	m := &Mux{o: o, routes: map[string]*route{}, closed: make(chan struct{}), waiting: connlimit.Table{Max: o.Waiting}}
	m.fallback = m.newRoute()
	return m
}

// Default is the listener of all connections that are no other route's.
func (m *Mux) Default() net.Listener { return m.fallback }

// Route is the listener of the connections whose clients offer a protocol; there is one for each. A listener that was
// closed stays closed, and so are the connections that come for it.
func (m *Mux) Route(protocol string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.routes[protocol] == nil {
		m.routes[protocol] = m.newRoute()
	}
	return m.routes[protocol]
}

// Close closes the port, all routes and the connections that wait, and returns when nothing of the Mux runs any more.
// Connections that a route has taken are the route's.
func (m *Mux) Close() error {
	err := m.end()
	m.begin.Do(func() {}) // no later
	m.running.Wait()
	return err
}

func (m *Mux) end() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return nil
	}
	m.ended = true
	close(m.closed)
	m.waiting.Close()
	return m.o.Listener.Close()
}

// accept takes connections until the port is closed. An error of the port's is not passed on to the routes: those would
// give up.
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
			_ = m.end() // its user may have closed it
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

// pending is a connection on the way to its route.
type pending struct {
	net.Conn
	dropped chan struct{} // closed by drop
	once    sync.Once
}

func (p *pending) drop() {
	p.once.Do(func() { close(p.dropped) })
	_ = p.Close() // no caller to report to
}

// dispatch routes a connection beside others.
func (m *Mux) dispatch(c net.Conn) {
	p := &pending{Conn: c, dropped: make(chan struct{})}
	done, ok := m.waiting.Add(c.RemoteAddr(), p.drop)
	if !ok {
		p.drop()
		return
	}
	m.running.Go(func() {
		defer done()
		m.route(p)
	})
}

func (m *Mux) route(p *pending) {
	_ = p.SetDeadline(time.Now().Add(m.o.Timeout)) // a connection without deadlines is one that Read says is closed
	protocols, read, err := readHello(p.Conn)
	if err != nil {
		p.drop()
		return
	}
	_ = p.SetDeadline(time.Time{})
	to := m.find(protocols)
	select {
	case to.conns <- &conn{Conn: p.Conn, read: read}:
	case <-to.closed:
		p.drop()
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

// route is a listener for some of the port's connections.
type route struct {
	m      *Mux
	conns  chan net.Conn // unbuffered: a connection is the Mux's until a listener has it
	closed chan struct{}
	once   sync.Once
}

// newRoute is called with mu held, or before anybody else knows the Mux.
func (m *Mux) newRoute() *route {
	m.open++
	return &route{m: m, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept returns the next connection of the route; net.ErrClosed is its only error.
func (r *route) Accept() (net.Conn, error) {
	r.m.begin.Do(func() { r.m.running.Go(r.m.accept) })
	select {
	case c := <-r.conns:
		return c, nil
	case <-r.closed:
	case <-r.m.closed:
	}
	return nil, net.ErrClosed
}

// Close ends the route. The port is closed with the last of them.
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
		return r.m.end()
	}
	return nil
}

func (r *route) Addr() net.Addr { return r.m.o.Listener.Addr() }
