// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"net"
	"sync"
)

// Listener bounds the connections of a listener whose clients have not said who they are, where the one who finds that
// out knows a connection by its remote address alone, as the handlers of net/http do. See Table for which one is closed
// when there are too many.
type Listener struct {
	net.Listener
	waiting Table
	unknown sync.Map // remote address → *conn
}

// NewListener bounds the connections of l that are unidentified to max.
func NewListener(l net.Listener, max int) *Listener {
	return &Listener{Listener: l, waiting: Table{Max: max}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// The Table is never closed; who serves the connection closes the rest.
	done, _ := l.waiting.Add(inner.RemoteAddr(), func() { _ = inner.Close() })
	c := &conn{Conn: inner, l: l, remote: inner.RemoteAddr().String(), done: sync.OnceFunc(done)}
	if other, loaded := l.unknown.Swap(c.remote, c); loaded {
		_ = other.(*conn).Close() // to another address of this machine; it could not be found again, and would not count
	}
	return c, nil
}

// Identified notes that the client of a connection, or of one before it with the same remote address, has said who it
// is. It is cheap for one that is known.
func (l *Listener) Identified(remote string) {
	if c, ok := l.unknown.LoadAndDelete(remote); ok {
		c.(*conn).done()
	}
}

type conn struct {
	net.Conn
	l      *Listener
	remote string
	done   func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.l.unknown.CompareAndDelete(c.remote, c)
	c.done()
	return c.Conn.Close()
}
