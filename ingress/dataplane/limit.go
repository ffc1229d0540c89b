// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/netip"
	"sync"
)

// limit limits the connections of clients, in total and for each source. It keeps the process below its memory limit,
// and lets no source take all connections. A source is an IPv4 address, or a /64 prefix of IPv6, which is what one
// machine has.
type limit struct {
	most int

	mu   sync.Mutex
	all  int
	of   map[netip.Addr]int
	open map[*countedTCP]struct{}
}

// acquire counts a connection. It returns false when there are too many. An invalid source has no limit of its own.
func (l *limit) acquire(source netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || !l.add(source) {
		return false
	}
	l.all++
	return true
}

// add counts a connection for its source. The caller holds mu.
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

// remove subtracts a connection from the counts. The caller holds mu.
func (l *limit) remove(source netip.Addr) {
	l.all--
	if !source.IsValid() {
		return
	}
	if l.of[source]--; l.of[source] == 0 {
		delete(l.of, source)
	}
}

// exceeds reports whether a source has the given number of connections, or all sources have four times as many.
func (l *limit) exceeds(source netip.Addr, many int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[source] >= many || l.all >= 4*many
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
		if !l.proxy.hasMemory(source) || !l.proxy.limit.acquire(source) {
			l.proxy.stats.Refused.Add(1)
			_ = conn.Close()
			continue
		}
		c := &counted{source: source, limit: &l.proxy.limit}
		tcp, ok := conn.(*net.TCPConn)
		switch {
		case ok && trusted && tables.proxied:
			return &proxiedConn{countedTCP: l.proxy.opened(tcp, c), proxy: l.proxy}, nil
		case ok:
			return l.proxy.opened(tcp, c), nil
		}
		return &countedConn{Conn: conn, counted: c}, nil
	}
}

// counted is a connection that counts for the limit.
type counted struct {
	limit  *limit
	source netip.Addr // limit.mu guards source and ended
	ended  bool
}

func (c *counted) gone() {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if !c.ended {
		c.ended = true
		c.limit.remove(c.source)
	}
}

// became makes a connection without a source count for the given one. It returns false when that source has too many.
func (c *counted) became(source netip.Addr) bool {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if c.ended || !c.limit.add(source) {
		return false
	}
	c.source = source
	return true
}

// countedTCP gives tunnels the methods of a TCP connection beyond net.Conn.
type countedTCP struct {
	*net.TCPConn
	*counted
	proxy *Proxy
}

func (p *Proxy) opened(conn *net.TCPConn, c *counted) *countedTCP {
	out := &countedTCP{conn, c, p}
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	p.limit.open[out] = struct{}{}
	return out
}

// Close closes the connection and stops counting it.
func (c *countedTCP) Close() error {
	defer c.gone()
	c.limit.mu.Lock()
	delete(c.limit.open, c)
	c.limit.mu.Unlock()
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
