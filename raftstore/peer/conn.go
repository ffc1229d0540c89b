// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// connections has the connections to other servers, of both directions, and makes them.
type connections struct {
	opts   Options
	began  time.Time
	ctx    context.Context // ends when the transport closes
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	raftConns, callConns *queue         // incoming connections
	refusals, untrusted  occasionally   // limit log lines about incoming and outgoing connections
	handlers             sync.WaitGroup // incoming raft connections
	// incomingEnded is called when an incoming raft connection has ended.
	incomingEnded func(*peer, error)

	movedServers movedServers
	peers

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
}

func newConnections(o Options) *connections {
	cs := &connections{
		opts: o, began: time.Now(), raftConns: newQueue(o.Address), callConns: newQueue(o.Address),
		peers: peers{byID: map[string]*peer{}}, conns: map[*conn]struct{}{},
	}
	cs.ctx, cs.cancel = context.WithCancel(context.Background())
	return cs
}

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

// conn is a connection after its handshake. Its bytes are counted. It is registered, so that Transport.Close can
// end it.
type conn struct {
	net.Conn
	conns  *connections
	peer   *peer
	target string // target of an outgoing raft connection
	class  class
	level  int // at which an outgoing raft connection was made
	// incoming says that the peer sends raft's messages on this connection.
	incoming        bool
	createdAt       time.Time
	messageDeadline time.Time    // the deadline of the message under way
	writtenBytes    atomic.Int64 // bytes
	lastRead        atomic.Int64 // when something was last read, by Transport.clock

	aborted  sync.Once
	released sync.Once
	onClosed func() // called when the owner has closed the connection, or nil
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
		restore := time.Duration(c.writtenBytes.Load()/snapshotRate) * time.Second
		_ = c.Conn.SetReadDeadline(time.Now().Add(snapshotStall + restore))
	case classIncomingSnapshots:
		_ = c.Conn.SetReadDeadline(time.Now().Add(snapshotSilence))
	}
	n, err := c.Conn.Read(b)
	c.peer.received.Add(uint64(n))
	if n > 0 {
		c.lastRead.Store(c.conns.clock(time.Now()))
	}
	if err != nil && c.incoming {
		c.conns.incomingEnded(c.peer, err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	switch c.class {
	case classSnapshots:
		_ = c.Conn.SetWriteDeadline(time.Now().Add(snapshotStall))
	case classEntries:
		c.messageDeadline = c.messageDeadline.Add(time.Duration(len(b)) * time.Second / entriesRate)
		_ = c.Conn.SetDeadline(c.messageDeadline)
	}
	n, err := c.Conn.Write(b)
	c.writtenBytes.Add(int64(n))
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
	c.messageDeadline = t
	return c.Conn.SetDeadline(t)
}

// Close closes the connection. Its owner calls it.
func (c *conn) Close() error {
	c.abort()
	c.released.Do(func() {
		if c.onClosed != nil {
			c.onClosed()
		}
	})
	return nil
}

// abort ends the connection while its owner may still use it. It says whether this call was the first.
func (c *conn) abort() (first bool) {
	c.aborted.Do(func() {
		first = true
		c.conns.remove(c)
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
func (cs *connections) register(c *conn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed {
		return false
	}
	cs.conns[c] = struct{}{}
	return true
}

// spawn runs f in a goroutine that Transport.Close waits for. It returns false if the transport is closing.
func (cs *connections) spawn(f func()) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if !cs.closed {
		cs.tasks.Go(f)
	}
	return !cs.closed
}

func (cs *connections) remove(c *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.conns, c)
}

// abortConns ends the connections for which match returns true.
func (cs *connections) abortConns(match func(*conn) bool) {
	var found []*conn
	cs.mu.Lock()
	for c := range cs.conns {
		if match(c) {
			found = append(found, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range found {
		c.abort()
	}
}

// EndOlder ends this server's connections for raft's messages that were made at an earlier level than the present one.
// It must be called after the level has changed, before anything is written in the new level's forms. The next
// connections are refused by servers that do not know these forms.
func (cs *connections) EndOlder() {
	now := cs.opts.Level()
	cs.abortConns(func(k *conn) bool { return k.target != "" && k.level < now })
}

// purge ends the connections to a target that a network's pool may hold and that were made before a given time: before
// the failure that showed that the peer has ended or restarted.
func (cs *connections) purge(target string, c class, before time.Time) {
	cs.abortConns(func(k *conn) bool {
		return k.class == c && k.target == target && k.createdAt.Before(before)
	})
}

// clock returns a time as nanoseconds since the transport began. It does not change when this machine's clock is set.
func (cs *connections) clock(at time.Time) int64 { return int64(at.Sub(cs.began)) }
