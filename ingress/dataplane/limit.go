// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// limit limits the requests under way of clients that may have several on one connection, in total and for each source,
// as connections does with connections.
type limit struct {
	most int

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

// acquire counts a request. It returns false when there are too many. An invalid source has no limit of its own.
func (l *limit) acquire(source netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || !l.add(source) {
		return false
	}
	l.all++
	return true
}

// add counts a request for its source. The caller holds mu.
func (l *limit) add(source netip.Addr) bool {
	if !source.IsValid() {
		return true
	}
	if l.of[source] >= max(1, l.most/2) {
		return false
	}
	l.of[source]++
	return true
}

func (l *limit) give(source netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(source)
}

// remove subtracts a request from the counts. The caller holds mu.
func (l *limit) remove(source netip.Addr) {
	l.all--
	if !source.IsValid() {
		return
	}
	if l.of[source]--; l.of[source] == 0 {
		delete(l.of, source)
	}
}

// sourceOf returns the source that a connection counts for.
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
		c := l.proxy.admit(&l.proxy.limit, source)
		if c == nil {
			_ = conn.Close()
			continue
		}
		tcp, ok := conn.(*net.TCPConn)
		switch {
		case ok && trusted && tables.proxied:
			return &proxiedConn{countedTCP: l.opened(tcp, c), proxy: l.proxy}, nil
		case ok:
			return l.opened(tcp, c), nil
		}
		return &countedConn{Conn: conn, counted: c}, nil
	}
}

// admit counts a new connection of a source, which may close another one. It returns nil for one that is refused.
func (p *Proxy) admit(to *connections, source netip.Addr) *counted {
	if !p.hasMemory(source) {
		p.stats.Refused.Add(1)
		p.stats.Limited.Memory.Add(1)
		return nil
	}
	c, cut := to.acquire(source)
	if cut != nil || c == nil {
		p.stats.Refused.Add(1)
		p.stats.Limited.Connections.Add(1)
	}
	if cut != nil {
		cut()
	}
	return c
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

// Close closes the connection and stops counting it.
func (c *countedTCP) Close() error {
	defer c.gone()
	return c.TCPConn.Close()
}

type countedConn struct {
	net.Conn
	*counted
}

// Close closes the connection and stops counting it.
func (c *countedConn) Close() error {
	defer c.gone()
	return c.Conn.Close()
}
