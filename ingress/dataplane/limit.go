// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/netip"
	"sync"
)

// limit bounds the connections of clients, in all and of each source, so that the process stays below its memory limit and no source keeps
// the others out. A source is an IPv4 address, or 64 bits of an IPv6 address, which is what one machine has.
type limit struct {
	most int

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

// take counts a connection; false says that there are too many.
func (l *limit) take(source netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || l.of[source] >= max(1, l.most/2) {
		return false
	}
	l.all++
	l.of[source]++
	return true
}

func (l *limit) give(source netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[source]--; l.of[source] == 0 {
		delete(l.of, source)
	}
}

// sourceOf is what a connection counts for.
func sourceOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

// limitListener closes what is more than the limit.
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
		source := sourceOf(conn.RemoteAddr())
		if !l.proxy.limit.take(source) {
			l.proxy.stats.Refused.Add(1)
			_ = conn.Close()
			continue
		}
		c := &counted{source: source, limit: &l.proxy.limit}
		if tcp, ok := conn.(*net.TCPConn); ok {
			return &countedTCP{TCPConn: tcp, counted: c}, nil
		}
		return &countedConn{Conn: conn, counted: c}, nil
	}
}

// counted is a connection's part of the limit.
type counted struct {
	source netip.Addr
	limit  *limit
	once   sync.Once
}

func (c *counted) gone() { c.once.Do(func() { c.limit.give(c.source) }) }

// countedTCP keeps what a TCP connection can do beyond net.Conn: tunnels use it.
type countedTCP struct {
	*net.TCPConn
	*counted
}

// Close ends the connection and its part of the limit.
func (c *countedTCP) Close() error {
	defer c.gone()
	return c.TCPConn.Close()
}

type countedConn struct {
	net.Conn
	*counted
}

// Close ends the connection and its part of the limit.
func (c *countedConn) Close() error {
	defer c.gone()
	return c.Conn.Close()
}
