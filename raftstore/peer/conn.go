// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// class is what an outgoing raft connection carries. Each class has its own pool and timeouts. Incoming connections and
// those for calls are classNone, except classIncomingSnapshots.
type class int

const (
	classNone class = iota
	classBeats
	classEntries
	classSnapshots
	classIncomingSnapshots
)

// conn is a connection after its handshake. Its bytes are counted. It is registered at the transport, so that Close can
// end it.
type conn struct {
	net.Conn
	t      *Transport
	peer   *peer
	target string // target of an outgoing raft connection
	class  class
	// incoming says that the peer sends raft's messages on this connection.
	incoming bool
	made     time.Time
	until    time.Time    // the deadline of the message under way
	wrote    atomic.Int64 // bytes
	heard    atomic.Int64 // when something was last read, by Transport.clock

	aborted  sync.Once
	released sync.Once
	done     func() // called when the owner has closed the connection, or nil
}

// remoteAddr carries the caller's id to gRPC's handlers.
type remoteAddr struct {
	net.Addr
	id string
}

func (c *conn) RemoteAddr() net.Addr { return remoteAddr{c.Conn.RemoteAddr(), c.peer.id} }

func (c *conn) Read(b []byte) (int, error) {
	switch c.class {
	case classSnapshots:
		// The answer arrives when the snapshot has been restored.
		restore := time.Duration(c.wrote.Load()/snapshotRate) * time.Second
		_ = c.Conn.SetReadDeadline(time.Now().Add(snapshotStall + restore))
	case classIncomingSnapshots:
		_ = c.Conn.SetReadDeadline(time.Now().Add(snapshotSilence))
	}
	n, err := c.Conn.Read(b)
	c.peer.received.Add(uint64(n))
	if n > 0 {
		c.heard.Store(c.t.clock(time.Now()))
	}
	if err != nil && c.incoming {
		c.t.broke(c.peer, err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	switch c.class {
	case classSnapshots:
		_ = c.Conn.SetWriteDeadline(time.Now().Add(snapshotStall))
	case classEntries:
		c.until = c.until.Add(time.Duration(len(b)) * time.Second / entriesRate)
		_ = c.Conn.SetDeadline(c.until)
	}
	n, err := c.Conn.Write(b)
	c.wrote.Add(int64(n))
	c.peer.sent.Add(uint64(n))
	return n, err
}

// SetDeadline sets the deadline of a message of entries, which Write extends. For a snapshot it does nothing, since
// Read and Write set the deadlines: NetworkTransport has only one for the whole transfer, hours long for a large
// snapshot.
func (c *conn) SetDeadline(t time.Time) error {
	if c.class == classSnapshots {
		return nil
	}
	c.until = t
	return c.Conn.SetDeadline(t)
}

// Close closes the connection. Its owner calls it.
func (c *conn) Close() error {
	c.abort()
	c.released.Do(func() {
		if c.done != nil {
			c.done()
		}
	})
	return nil
}

// abort ends the connection while its owner may still use it. It says whether this call was the first.
func (c *conn) abort() (first bool) {
	c.aborted.Do(func() {
		first = true
		c.t.drop(c)
		closeConn(c.Conn)
	})
	return first
}

// closeConn closes a connection without TLS's closing alert. TLS would wait up to 5 s to send the alert to a peer that
// does not read any more. It is not needed, since each of our messages has its own length or end.
func closeConn(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	}
	_ = c.Close()
}

// register adds a connection to those that Close ends. It returns false if the transport is closing.
func (t *Transport) register(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

func (t *Transport) drop(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

// abortConns ends the connections for which match returns true.
func (t *Transport) abortConns(match func(*conn) bool) {
	var found []*conn
	t.mu.Lock()
	for c := range t.conns {
		if match(c) {
			found = append(found, c)
		}
	}
	t.mu.Unlock()
	for _, c := range found {
		c.abort()
	}
}
