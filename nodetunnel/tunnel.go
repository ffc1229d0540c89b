// SPDX-License-Identifier: Apache-2.0

// Package nodetunnel is the connection that a node opens to a server and keeps open. The server opens streams over it,
// to the node's kubelet and to its pods, so that it need not be able to reach the node; and it hears from the node
// every second.
//
// Both ends are here: Serve is the node's, NewSession the server's. The connection that they are given is a TLS
// connection of Protocol whose two ends know each other: who the node is, is the business of server/tunnels, and which
// servers there are that of agent/tunnels. Streams are yamux's. The package keeps no list of anything, and logs
// nothing.
package nodetunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// Protocol is the name in ALPN.
	Protocol = "coracle-node/1"
	// PingEvery is how often a node says that it lives. The server's answers are pings' too: the node notices a server
	// that is silent.
	PingEvery = time.Second

	// writeTimeout is yamux's for a ping and for a frame that the connection does not take.
	writeTimeout = 10 * time.Second
	// openTimeout bounds what happens on a stream before its bytes are the stream user's.
	openTimeout = 10 * time.Second
	// closeTimeout is how long one end of a stream may stay open when the other one is closed.
	closeTimeout = time.Minute
	// maxStreams is how many streams a node serves at a time.
	maxStreams = 1000
	// maxTarget and maxReason bound the two messages at the start of a stream, in bytes.
	maxTarget, maxReason = 64, 1 << 10
)

// config is yamux's for both ends. The node pings by itself, since yamux's own keep-alive does not tell who was silent.
func config(backlog int) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = writeTimeout
	c.StreamOpenTimeout = openTimeout
	c.StreamCloseTimeout = closeTimeout
	c.LogOutput, c.Logger = nil, log.New(io.Discard, "", 0) // what goes wrong is the error of a call as well
	return c
}

// heardConn notes when something came in, and fails when too many pings come.
type heardConn struct {
	net.Conn
	at    atomic.Pointer[time.Time]
	pings pingLimit
}

func newHeardConn(c net.Conn) *heardConn {
	h := &heardConn{Conn: c}
	h.hear()
	return h
}

func (c *heardConn) hear() {
	now := time.Now()
	c.at.Store(&now)
}

func (c *heardConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.hear()
		if !c.pings.allow(b[:n], time.Now()) {
			return 0, errPings
		}
	}
	return n, err
}

// The first message on a stream is the server's: where the stream shall lead, as a length of two bytes and an address
// with its port. The node answers with the same form: no text if it does, or why not. What follows is the two peers'
// own.

func writeMessage(w io.Writer, text string) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(text)), uint16(len(text)))
	_, err := w.Write(append(b, text...))
	return err
}

func readMessage(r io.Reader, most int) (string, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > most {
		return "", fmt.Errorf("a message of %d bytes, at most %d are expected", n, most)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", err
	}
	return string(text), nil
}

var errTarget = errors.New("is no address with a port")

func readTarget(r io.Reader) (netip.AddrPort, error) {
	text, err := readMessage(r, maxTarget)
	if err != nil {
		return netip.AddrPort{}, err
	}
	to, err := netip.ParseAddrPort(text)
	if err != nil || to.Port() == 0 || to.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q %w", text, errTarget)
	}
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), nil
}
