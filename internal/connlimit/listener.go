// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"net"
	"sync"
)

// Listener limits the number of a listener's connections whose clients are unauthenticated. It is for servers that
// authenticate a client by a request and know only the connection's remote address then, as the handlers of net/http
// do. Table says which connection is closed when there are too many.
type Listener struct {
	net.Listener
	waiting *Table
	admits  func(net.Addr) bool
	unknown sync.Map // unauthenticated connections: remote address → *conn
}

// NewListener returns a listener that limits the number of unauthenticated connections of l to max.
func NewListener(l net.Listener, max int) *Listener {
	return &Listener{Listener: l, waiting: &Table{Max: max}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	for ; err == nil && l.admits != nil && !l.admits(inner.RemoteAddr()); inner, err = l.Listener.Accept() {
		_ = inner.Close() // no caller to report to
	}
	if err != nil {
		return nil, err
	}
	// The table is never closed. The server closes the connections that are left.
	done, _ := l.waiting.Add(inner.RemoteAddr(), func() { _ = inner.Close() })
	c := &conn{Conn: inner, l: l, remote: inner.RemoteAddr().String(), release: sync.OnceFunc(done)}
	if other, loaded := l.unknown.Swap(c.remote, c); loaded {
		_ = other.(*conn).Close() // it connects to another address of this machine; it could not be found any more and would not count
	}
	return c, nil
}

// Identified marks the connection with this remote address as authenticated. It may be called for each request: for a
// connection that is marked already it costs little.
func (l *Listener) Identified(remote string) {
	if c, ok := l.unknown.LoadAndDelete(remote); ok {
		c.(*conn).release()
	}
}

type conn struct {
	net.Conn
	l       *Listener
	remote  string
	release func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.l.unknown.CompareAndDelete(c.remote, c)
	c.release()
	return c.Conn.Close()
}
