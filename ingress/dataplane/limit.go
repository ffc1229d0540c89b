// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// requestLimit limits the requests under way of clients that may have several on one connection, in total and for each
// source, as connections does with connections.
type requestLimit struct {
	limit int

	mu       sync.Mutex
	total    int
	bySource map[netip.Addr]int
}

// acquire counts a request. It returns false when there are too many. An invalid source has no limit of its own.
func (l *requestLimit) acquire(source netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.limit || l.bySource[source] >= max(1, l.limit/2) {
		return false
	}
	if source.IsValid() {
		l.bySource[source]++
	}
	l.total++
	return true
}

// release stops counting a request.
func (l *requestLimit) release(source netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.bySource[source] > 1 {
		l.bySource[source]--
	} else {
		delete(l.bySource, source)
	}
}

func (l *requestLimit) count(source netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bySource[source]
}

func sourceOf(a net.Addr) netip.Addr { return sourceOfAddress(addressOf(a)) }

func sourceOfAddress(ip netip.Addr) netip.Addr {
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

func addressOf(a net.Addr) netip.Addr {
	if at, ok := a.(interface{ AddrPort() netip.AddrPort }); ok { // of TCP and UDP
		return at.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// limitListener closes connections above the limit.
type limitListener struct {
	net.Listener
	proxy *Proxy
	plain bool // without TLS
}

// Accept returns the next connection that is within the limit.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source, tables := sourceOf(conn.RemoteAddr()), l.proxy.current.Load()
		trusted := len(tables.trusted) > 0 && contains(tables.trusted, addressOf(conn.RemoteAddr()))
		if trusted {
			source = netip.Addr{} // many clients' connections
		}
		c := l.proxy.limits.admit(&l.proxy.limits.connections, source)
		if c == nil {
			_ = conn.Close()
			continue
		}
		tcp, ok := conn.(*net.TCPConn)
		switch {
		case ok && trusted && tables.proxied:
			return &proxiedConn{countedTCP: l.opened(tcp, c)}, nil
		case ok:
			return l.opened(tcp, c), nil
		}
		return &countedConn{Conn: conn, counted: c}, nil
	}
}

// countedTCP gives tunnels the methods of a TCP connection beyond net.Conn.
type countedTCP struct {
	*net.TCPConn
	*counted
	proxy *Proxy
	plain bool        // without TLS
	began atomic.Bool // the client has sent something
}

func (l *limitListener) opened(conn *net.TCPConn, c *counted) *countedTCP {
	out := &countedTCP{TCPConn: conn, counted: c, proxy: l.proxy, plain: l.plain}
	c.opened(func() { _ = out.Close() })
	return out
}

// errMemory ends a connection on which more is received while no memory is left.
var errMemory = errors.New("the process has no memory left for this client")

// Read implements net.Conn. It checks the memory, since bodies of HTTP/2 are received before a handler reads them, and
// headers before there is a request.
// Empty lines before the first request of a connection without TLS are left out.
func (c *countedTCP) Read(to []byte) (int, error) { return c.read(c.TCPConn, to) }

func (c *countedTCP) read(from io.Reader, to []byte) (int, error) {
	n, err := from.Read(to)
	if !c.began.Load() {
		if c.plain {
			n, err = dropEmptyLines(to, n, err, from.Read)
		}
		c.began.Store(true)
		c.setBusy(true)
	}
	if p := c.proxy; err == nil && p.limits.memory.exceeds(sourcesShed) && p.limits.memory.aboveAfterGC(sourcesShed) {
		if p.limits.exceedsShare(c.address()) || p.limits.memory.exceeds(requestsRefused) && p.limits.memory.aboveAfterGC(requestsRefused) {
			p.stats.Limited.Memory.Add(1)
			_ = c.Close() // net/http forgets an error of the first read, in which it looks for HTTP/2
			return 0, errMemory
		}
		p.limits.shed() // many sources may have little each
	}
	return n, err
}

// Close closes the connection and stops counting it.
func (c *countedTCP) Close() error {
	defer c.uncount()
	return c.TCPConn.Close()
}

type countedConn struct {
	net.Conn
	*counted
}

// Close closes the connection and stops counting it.
func (c *countedConn) Close() error {
	defer c.uncount()
	return c.Conn.Close()
}
