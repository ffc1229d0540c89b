// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The PROXY protocol (proxy-protocol.txt of HAProxy, 2020) sends the address of a client before the first byte of its
// connection. An expected header is mandatory: if it could be missing, the client could send one of its own.
const (
	// longestV1 is the greatest length of a header of version 1, with its end.
	longestV1 = 107
	// longestV2 limits the addresses and further values of a header of version 2. The protocol's own limit is 64 KiB.
	longestV2 = 4096
)

var signatureV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

var errProxyHeader = errors.New("no header of the PROXY protocol")

// readProxyHeader reads a header and not a byte more. It returns the client's address and the port that the client
// connected to. Both are zero where the header names none, as for a health check.
func readProxyHeader(r io.Reader) (from netip.AddrPort, to uint16, err error) {
	start := make([]byte, len(signatureV2), longestV1)
	if _, err := io.ReadFull(r, start); err != nil {
		return netip.AddrPort{}, 0, err
	}
	if bytes.Equal(start, signatureV2) {
		return readV2(r)
	}
	if !bytes.HasPrefix(start, []byte("PROXY ")) {
		return netip.AddrPort{}, 0, errProxyHeader
	}
	for line := start; len(line) < longestV1; { // byte by byte, since the bytes that follow are the client's
		line = line[:len(line)+1]
		if _, err := io.ReadFull(r, line[len(line)-1:]); err != nil {
			return netip.AddrPort{}, 0, err
		}
		if text, ok := bytes.CutSuffix(line, []byte("\r\n")); ok {
			return parseV1(string(text))
		}
	}
	return netip.AddrPort{}, 0, fmt.Errorf("%w: its line is too long", errProxyHeader)
}

func parseV1(line string) (from netip.AddrPort, to uint16, err error) {
	f := strings.Split(line, " ")
	switch {
	case len(f) > 1 && f[1] == "UNKNOWN":
		return netip.AddrPort{}, 0, nil
	case len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6":
		return netip.AddrPort{}, 0, fmt.Errorf("%w: %q", errProxyHeader, line)
	}
	from, err = netip.ParseAddrPort(net.JoinHostPort(f[2], f[4]))
	port, wrong := strconv.ParseUint(f[5], 10, 16)
	if err != nil || wrong != nil || from.Addr().Zone() != "" || from.Addr().Is4() != (f[1] == "TCP4") {
		return netip.AddrPort{}, 0, fmt.Errorf("%w: %q", errProxyHeader, line)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), uint16(port), nil
}

// readV2 reads the rest of a header after the signature.
func readV2(r io.Reader) (from netip.AddrPort, to uint16, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return netip.AddrPort{}, 0, err
	}
	version, command, length := head[0]>>4, head[0]&0xf, int(binary.BigEndian.Uint16(head[2:]))
	if version != 2 || command > 1 || length > longestV2 {
		return netip.AddrPort{}, 0, fmt.Errorf("%w: % x", errProxyHeader, head)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return netip.AddrPort{}, 0, err
	}
	const local, tcp4, tcp6 = 0, 0x11, 0x21
	size := map[byte]int{tcp4: 4, tcp6: 16}[head[1]]
	switch {
	case command == local || head[1] == 0: // a connection of the proxy itself, or of no address family
		return netip.AddrPort{}, 0, nil
	case size == 0 || length < 2*size+4:
		return netip.AddrPort{}, 0, fmt.Errorf("%w: % x", errProxyHeader, head)
	}
	client, _ := netip.AddrFromSlice(body[:size])
	return netip.AddrPortFrom(client.Unmap(), binary.BigEndian.Uint16(body[2*size:])), binary.BigEndian.Uint16(body[2*size+2:]), nil
}

// proxiedConn is a connection of a trusted proxy. Its PROXY protocol header is read when it is first needed: by the
// goroutine that serves the connection, and not by the one that accepts it.
type proxiedConn struct {
	*countedTCP
	proxy *Proxy
	once  sync.Once
	from  net.Addr
	to    net.Addr
	err   error
}

// proxiedTo is the local address of a connection, with the port that the client connected to at the proxy.
type proxiedTo struct {
	net.Addr
	port string
}

func (c *proxiedConn) header() {
	c.once.Do(func() {
		c.from, c.to = c.TCPConn.RemoteAddr(), c.TCPConn.LocalAddr()
		_ = c.SetReadDeadline(time.Now().Add(c.proxy.options.HeaderTimeout)) // a connection that cannot have a deadline fails at once
		var from netip.AddrPort
		var port uint16
		if from, port, c.err = readProxyHeader(c.TCPConn); c.err == nil && from.IsValid() {
			c.from, c.to = net.TCPAddrFromAddrPort(from), proxiedTo{c.to, strconv.Itoa(int(port))}
			cut, ok := c.became(sourceOf(c.from))
			if cut != nil {
				c.proxy.stats.Refused.Add(1)
				cut()
			}
			if cut != nil || !ok {
				c.proxy.stats.Limited.Connections.Add(1)
			}
			if !ok {
				c.err = errors.New("too many connections of this client")
			}
		}
		if c.err == nil {
			c.err = c.SetReadDeadline(time.Time{})
		}
		if c.err != nil {
			c.proxy.stats.Refused.Add(1)
			c.complain()
			_ = c.Close()
		}
	})
}

// complain logs that a trusted proxy sends no header. It does so once, until the settings change.
func (c *proxiedConn) complain() {
	if errors.Is(c.err, errProxyHeader) && c.proxy.complained.CompareAndSwap(false, true) {
		c.proxy.options.Logger.Warn("a connection of a trusted proxy was closed, since it does not begin with a header of the PROXY protocol: "+
			"have the proxy send it, or switch off --ingress-proxy-protocol", "from", c.TCPConn.RemoteAddr(), "error", c.err)
	}
}

// RemoteAddr returns the client's address.
func (c *proxiedConn) RemoteAddr() net.Addr {
	c.header()
	return c.from
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
	return c.countedTCP.Read(to)
}

// WriteTo sends the bytes after the header to w.
func (c *proxiedConn) WriteTo(w io.Writer) (int64, error) {
	if c.header(); c.err != nil {
		return 0, c.err
	}
	return c.countedTCP.WriteTo(w)
}
