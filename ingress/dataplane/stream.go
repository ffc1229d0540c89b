// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// stream is a compiled table.Stream.
type stream struct {
	pool
	terminate bool
	refused   string // why connections are closed; empty for a stream that is open
}

// compileStream always returns a stream. With an error, that stream is closed.
func (c compiler) compileStream(from *table.Stream) (*stream, error) {
	out := &stream{terminate: from.Terminate}
	if err := c.compilePool(&out.pool, from.Backends); err != nil {
		out.refused = err.Error()
		return out, fmt.Errorf("the backends of a stream: %w", err)
	}
	return out, nil
}

// helloListener accepts connections of which a site's streams can take possession once the client has named the host.
type helloListener struct {
	net.Listener
	listener *listener
}

// Accept returns the next connection.
func (l *helloListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if s := l.listener.proxy.current.Load().sites[l.listener.site]; s == nil || s.streams == 0 {
		return conn, nil
	}
	return &helloConn{Conn: conn, listener: l.listener}, nil
}

// helloConn keeps the bytes read from a connection until the client's first message is complete. When a stream takes
// the connection, the HTTP server's handshake ends with an error. The server then neither writes to the connection nor
// closes it.
type helloConn struct {
	net.Conn
	listener *listener
	hello    []byte // owned by the handshake's goroutine
	complete bool   // hello is complete; owned as hello
	isStream atomic.Bool
}

// errBecameStream ends the HTTP server's handshake on a connection that is a stream.
var errBecameStream = errors.New("the connection is a stream")

// errTunnelClosed says that the listener was drained while the tunnel connected.
var errTunnelClosed = errors.New("the tunnel has been closed")

func (c *helloConn) becomeStream(h *host) error {
	c.complete = true
	c.isStream.Store(true)
	_ = c.Conn.SetDeadline(time.Time{}) // removes the handshake's deadline; a connection that cannot have one fails at once
	c.listener.stream(c.Conn, c.hello, h)
	c.hello = nil
	return errBecameStream
}

// release leaves the connection to the HTTP server.
func (c *helloConn) release() { c.complete, c.hello = true, nil }

// Read reads from the client.
func (c *helloConn) Read(to []byte) (int, error) {
	if c.isStream.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(to)
	if !c.complete {
		c.hello = append(c.hello, to[:n]...)
	}
	return n, err
}

// Write writes to the client.
func (c *helloConn) Write(piece []byte) (int, error) {
	if c.isStream.Load() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(piece)
}

// Close ends the connection.
func (c *helloConn) Close() error {
	if c.isStream.Load() {
		return nil
	}
	return c.Conn.Close()
}

// SetDeadline sets both deadlines.
func (c *helloConn) SetDeadline(t time.Time) error {
	if c.isStream.Load() {
		return nil
	}
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline sets the deadline of reads.
func (c *helloConn) SetReadDeadline(t time.Time) error {
	if c.isStream.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline sets the deadline of writes.
func (c *helloConn) SetWriteDeadline(t time.Time) error {
	if c.isStream.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// stream forwards a connection to a backend of the host, in a goroutine of its own. hello holds the bytes that the
// client has sent.
func (l *listener) stream(client net.Conn, hello []byte, h *host) {
	ctx, cancel := context.WithCancel(context.Background())
	t := &tunnel{listener: l, client: client, stall: l.proxy.options.IdleTimeout, release: cancel, cancel: cancel}
	if !l.add(t) {
		t.close()
		return
	}
	t.openDirections.Store(2)
	go func() {
		if err := l.connect(ctx, t, hello, h); err != nil {
			l.proxy.options.Logger.Debug("a stream failed", "site", l.site, "host", h.name, "error", err)
			t.close()
			l.remove(t)
		}
	}()
}

// connect connects a tunnel to a backend and begins it.
func (l *listener) connect(ctx context.Context, t *tunnel, hello []byte, h *host) error {
	s, p := h.stream, l.proxy
	if s.refused != "" {
		return errors.New(s.refused)
	}
	b := s.choose()
	if b == nil || b.invalid {
		return errors.New("the stream has no backend")
	}
	if s.terminate {
		limited, cancel := context.WithTimeout(ctx, p.options.HeaderTimeout)
		defer cancel()
		conn := tls.Server(&prefixConn{Conn: t.client, prefix: hello}, p.streamTLS(l.site))
		if err := conn.HandshakeContext(limited); err != nil {
			return fmt.Errorf("shaking hands with a client: %w", err)
		}
		hello = nil
		if !t.setConns(conn, nil) {
			return errTunnelClosed
		}
	}
	var conn net.Conn
	err := selection{}.attempt(b.endpoints, func(e *endpoint) (err error) {
		conn, err = p.upstream.dialTunnel(ctx, e)
		return err
	}, func() bool { return ctx.Err() == nil })
	if err != nil {
		return err
	}
	if b.client != nil {
		limited, cancel := context.WithTimeout(ctx, p.options.HeaderTimeout)
		defer cancel()
		secured := tls.Client(conn, b.client.config())
		if err := secured.HandshakeContext(limited); err != nil {
			_ = conn.Close()
			return fmt.Errorf("shaking hands with a backend: %w", err)
		}
		conn = secured
	}
	if !t.setConns(t.client, conn) {
		return errTunnelClosed
	}
	go t.pipe(conn, t.client, hello)
	go t.pipe(t.client, conn, nil)
	return nil
}

// prefixConn is a connection whose first bytes were read already. It returns them once more.
type prefixConn struct {
	net.Conn
	prefix []byte
}

// Read reads the rest of the prefix, then from the connection.
func (c *prefixConn) Read(to []byte) (int, error) {
	if len(c.prefix) == 0 {
		c.prefix = nil
		return c.Conn.Read(to)
	}
	n := copy(to, c.prefix)
	c.prefix = c.prefix[n:]
	return n, nil
}
