// SPDX-License-Identifier: Apache-2.0

// Package nodetunnel is the connection that a node opens to a server and keeps open. The server opens streams over it,
// to the node's kubelet and to its pods, so that it need not be able to reach the node. The server gets a ping from the
// node every second.
//
// It has both ends: Serve is the node's, NewSession the server's. Each gets a TLS connection with Protocol whose two
// ends are authenticated: server/tunnels identifies the node, and agent/tunnels chooses the servers. Streams are
// yamux's. The package keeps no list of connections, and logs nothing.
//
// Its goroutines: at the node's end one that pings, and one for each stream or refusal; yamux's two for each
// connection.
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
	// Protocol is the ALPN protocol of tunnels.
	Protocol = "coracle-node/1"
	// PingEvery is the interval of a node's pings, which are its sign of life. By the replies the node detects an
	// unresponsive server.
	PingEvery = time.Second

	// writeTimeout is yamux's limit for a ping's reply and for sending a frame.
	writeTimeout = 10 * time.Second
	// openTimeout limits the opening of a stream, before its user's bytes.
	openTimeout = 10 * time.Second
	// closeTimeout is how long one end of a stream may stay open when the other one is closed.
	closeTimeout = time.Minute
	// maxStreams is how many streams of a connection a node serves at a time. reservedStreams of them are for the
	// cluster's own purposes, such as volumes, webhooks and aggregated APIs: see Session.DialForUser. It is more than
	// opening, as streams of concurrent calls are counted late.
	maxStreams, reservedStreams = 1000, 200
	// maxTarget and maxReason limit the two messages at the start of a stream, in bytes.
	maxTarget, maxReason = 64, 1 << 10
)

// config returns yamux's configuration for both ends. The node pings by itself, since yamux's own keep-alive does not
// show which end was unresponsive.
func config(backlog int) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = writeTimeout
	c.StreamOpenTimeout = openTimeout
	c.StreamCloseTimeout = closeTimeout
	c.LogOutput, c.Logger = nil, log.New(io.Discard, "", 0) // calls return the same errors
	return c
}

// contactConn records when bytes were received. Read fails when the peer sends too many pings.
type contactConn struct {
	net.Conn
	lastContact atomic.Pointer[time.Time]
	pings       pingLimit
}

func newContactConn(c net.Conn) *contactConn {
	h := &contactConn{Conn: c}
	h.hear()
	return h
}

func (c *contactConn) hear() {
	now := time.Now()
	c.lastContact.Store(&now)
}

func (c *contactConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.hear()
		if !c.pings.allow(b[:n], time.Now()) {
			return 0, errPings
		}
	}
	return n, err
}

// The first message on a stream is the server's. It names the stream's target, as a length of two bytes and an address
// with its port. The node replies in the same form: without text if it has connected, or with the reason why not. All
// further bytes belong to the two users of the stream.

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
