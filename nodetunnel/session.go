// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// opening is how many streams a server may be opening at a time.
const opening = 128

// Session is a server's end of a tunnel: the server opens streams to addresses of the node.
type Session struct {
	yamux *yamux.Session
	conn  *contactConn

	reporting sync.Mutex // held while the node receives a report
	reported  string     // see ReportReadiness
}

// ErrRefused means that the node does not open a stream: the address is not its own, or its connection fails.
var ErrRefused = errors.New("the node does not connect to it")

// ErrTooMany means that a node serves as many streams as it may, or for a user that only reservedStreams are left.
var ErrTooMany = errors.New(tooMany)

// tooMany is the reason by which a node says so.
const tooMany = "too many connections to this node"

// NewSession serves a connection that a node has opened.
func NewSession(c net.Conn) (*Session, error) {
	conn := newContactConn(c)
	y, err := yamux.Client(conn, config(opening))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Session{yamux: y, conn: conn}, nil
}

// LastContact returns when the last bytes were received from the node.
func (s *Session) LastContact() time.Time { return *s.conn.lastContact.Load() }

var errNodeOpened = errors.New("the node opened a stream; only servers do")

// Wait returns when the connection has ended, with the reason. It closes the connection of a node that opens a stream:
// a node can reach nothing by it, and its data would stay in memory.
func (s *Session) Wait() error {
	_, err := s.yamux.AcceptStream()
	if err == nil {
		err = errNodeOpened
	}
	return errors.Join(err, s.yamux.Close())
}

// Streams returns the number of open streams.
func (s *Session) Streams() int { return s.yamux.NumStreams() }

// Close ends the connection and its streams.
func (s *Session) Close() error { return s.yamux.Close() }

// Dial opens a stream to an address of the node. ctx limits the opening only. The error wraps ErrRefused when the node
// refused it, and ErrTooMany when it has too many streams. Other errors are the connection's.
func (s *Session) Dial(ctx context.Context, to netip.AddrPort) (_ net.Conn, err error) {
	stream, err := s.yamux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("opening a stream to the node: %w", err)
	}
	defer func() {
		if err != nil {
			_ = stream.Close()
		}
	}()
	_ = stream.SetDeadline(time.Now().Add(openTimeout + time.Second)) // the node's own limit ends first, and has a reason
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = writeMessage(stream, to.String())
	reason := ""
	if err == nil {
		reason, err = readMessage(stream, maxReason)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("asking the node for %s: %w", to, err)
	case reason == tooMany:
		return nil, fmt.Errorf("%s: %w", to, ErrTooMany)
	case reason != "":
		return nil, fmt.Errorf("%s: %w: %s", to, ErrRefused, reason)
	case !stop(): // ctx has ended, so the stream's deadline is over
		return nil, context.Cause(ctx)
	}
	return stream, stream.SetDeadline(time.Time{})
}

// DialForUser is Dial for a stream that a user's request keeps open as long as the user wants, such as a port-forward.
// It leaves reservedStreams to other purposes.
func (s *Session) DialForUser(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if s.yamux.NumStreams() >= maxStreams-reservedStreams {
		return nil, fmt.Errorf("%s: %w", to, ErrTooMany)
	}
	return s.Dial(ctx, to)
}
