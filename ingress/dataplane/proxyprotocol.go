// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// headerBuffer is how many bytes are read at a time for a header of the PROXY protocol. A header of version 1, which is
// shorter, has to come at once.
const headerBuffer = 256

// proxiedConn is a connection of a trusted proxy. A header of the PROXY protocol (proxy-protocol.txt of HAProxy) sends
// the address of a client before the first byte of its connection. It is mandatory: if it could be missing, the client
// could send one of its own. It is read when it is first needed: by the goroutine that serves the connection, and not
// by the one that accepts it.
type proxiedConn struct {
	*countedTCP
	once    sync.Once
	payload prefixConn // what follows the header; a server's first Read takes all of its prefix
	client  net.Addr
	to      net.Addr
	err     error
}

// proxiedTo is the local address of a connection, with the port that the client connected to at the proxy.
type proxiedTo struct {
	net.Addr
	port string
}

func (c *proxiedConn) header() {
	c.once.Do(func() {
		c.client, c.to = c.TCPConn.RemoteAddr(), c.TCPConn.LocalAddr()
		_ = c.SetReadDeadline(time.Now().Add(c.proxy.options.HeaderTimeout)) // a connection that cannot have a deadline fails at once
		in := bufio.NewReaderSize(c.TCPConn, headerBuffer)
		client, to, err := readProxyHeader(in)
		prefix, _ := in.Peek(in.Buffered())
		c.payload = prefixConn{c.TCPConn, prefix}
		switch {
		case err != nil:
			c.complain(err, len(prefix) > 0)
		case client != nil:
			c.client, c.to = client, proxiedTo{c.to, strconv.Itoa(to.Port)}
			err = c.reassign(sourceOf(client))
		}
		if err == nil {
			err = c.SetReadDeadline(time.Time{})
		}
		if c.err = err; err != nil {
			c.proxy.stats.Refused.Add(1)
			_ = c.Close()
		}
	})
}

// readProxyHeader returns the address of the client and the one that it connected to. Both are nil where the header
// names none, as for a health check.
func readProxyHeader(in *bufio.Reader) (client, to *net.TCPAddr, err error) {
	header, err := proxyproto.Read(in)
	if err != nil || header.Command.IsLocal() {
		return nil, nil, err //nolint:wrapcheck // complain says what it is about
	}
	client, to, ok := header.TCPAddrs()
	if !ok {
		return nil, nil, proxyproto.ErrUnsupportedAddressFamilyAndProtocol
	}
	return client, to, nil
}

// reassign makes the connection count for the client.
func (c *proxiedConn) reassign(source netip.Addr) error {
	cut, ok := c.countFor(source)
	if cut != nil {
		c.proxy.stats.Refused.Add(1)
		cut()
	}
	if cut != nil || !ok {
		c.proxy.stats.Limited.Connections.Add(1)
	}
	if !ok {
		return errManyConnections
	}
	return nil
}

// complain logs that a trusted proxy sends no header. It does so once, until the settings change. A connection that
// ends, or on which nothing was sent, says nothing about that.
func (c *proxiedConn) complain(err error, sent bool) {
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, proxyproto.ErrNoProxyProtocol) && !sent {
		return
	}
	if c.proxy.complained.CompareAndSwap(false, true) {
		c.proxy.options.Logger.Warn("a connection of a trusted proxy was closed, since it does not begin with a header of the PROXY protocol: "+
			"have the proxy send it, or switch off --ingress-proxy-protocol", "from", c.TCPConn.RemoteAddr(), "error", err)
	}
}

// RemoteAddr returns the client's address.
func (c *proxiedConn) RemoteAddr() net.Addr {
	c.header()
	return c.client
}

// LocalAddr returns the connection's own address, or a proxiedTo.
func (c *proxiedConn) LocalAddr() net.Addr {
	c.header()
	return c.to
}

// Read reads the bytes after the header.
func (c *proxiedConn) Read(to []byte) (int, error) {
	if c.header(); c.err != nil {
		return 0, c.err
	}
	return c.read(&c.payload, to)
}

// WriteTo sends the bytes after the header to w.
func (c *proxiedConn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}
