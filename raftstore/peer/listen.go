// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// maxUnidentified is how many connections may be in their handshake at a time. Each needs a goroutine and a file
	// descriptor.
	maxUnidentified = 1024
	maxAcceptWait   = time.Second
	refusalLogs     = 10 * time.Second
	maxDiscard      = 64 << 10 // bytes read from a refused connection
)

// accept accepts connections from the listener until that is closed. If more than maxUnidentified are in their
// handshake, the oldest of the source with the most of them is closed: a client that sends nothing must not keep
// servers out.
func (cs *connections) accept() {
	unidentified := connlimit.Table{Max: maxUnidentified}
	wait := time.Duration(0)
	for {
		c, err := cs.opts.Listener.Accept()
		if err != nil {
			if cs.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			wait = min(max(2*wait, 5*time.Millisecond), maxAcceptWait)
			cs.opts.Logger.Warn("could not accept a connection from another server; retrying", "error", err)
			if !timers.Sleep(cs.ctx, wait) {
				return
			}
			continue
		}
		wait = 0
		identified, _ := unidentified.Add(c.RemoteAddr(), func() { closeConn(c) }) // the table is never closed
		cs.tasks.Go(func() { cs.acceptHello(c, identified) })
	}
}

// acceptHello does the listening side of the handshake and passes the connection to raft or to the calls' server. It
// calls identified when the handshake is over.
func (cs *connections) acceptHello(c net.Conn, identified func()) {
	remote := c.RemoteAddr().String()
	h, err := cs.handshake(c)
	identified()
	if err != nil {
		if cs.ctx.Err() == nil {
			if reason := tlsFailure(err); reason != "" {
				err = errors.New(reason)
			}
			cs.opts.Logger.Log(cs.ctx, cs.refusals.level(), "rejected a connection from another server", "remote", remote, "error", err)
		}
		closeConn(c)
		return
	}
	k := &conn{Conn: c, conns: cs, peer: cs.peer(h.sender), createdAt: time.Now()}
	to := cs.callConns
	if h.kind == kindSnapshots {
		k.class = classIncomingSnapshots
	}
	if h.kind == kindCalls {
		endAfterSilence(c)
	} else {
		to, k.incoming = cs.raftConns, true
		cs.handlers.Add(1)
		k.onClosed = cs.handlers.Done
	}
	if !cs.register(k) || !to.put(k) {
		_ = k.Close()
	}
}

// occasionally gives a repeated log line level Info once in refusalLogs, otherwise Debug: a server that is refused
// keeps trying.
type occasionally struct{ lastInfo atomic.Int64 }

func (o *occasionally) level() slog.Level {
	now, last := time.Now().UnixNano(), o.lastInfo.Load()
	if now-last < int64(refusalLogs) || !o.lastInfo.CompareAndSwap(last, now) {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func (cs *connections) handshake(c net.Conn) (hello, error) {
	defer context.AfterFunc(cs.ctx, func() { closeConn(c) })()
	if err := c.SetDeadline(time.Now().Add(cs.handshakeTime())); err != nil {
		return hello{}, err
	}
	h, err := readHello(c, cs.opts.Newest)
	reply := reply{id: cs.opts.ID}
	if err == nil {
		reply.reason = cs.opts.checkHello(h)
	} else if bad, ok := errors.AsType[*badHello](err); ok {
		reply.reason = bad.reason
	} else {
		return h, fmt.Errorf("handshake: %w", err)
	}
	if _, err := c.Write(reply.encode()); err != nil {
		return h, fmt.Errorf("answer a handshake: %w", err)
	}
	if reply.reason != "" {
		// If a connection is closed with unread bytes, the peer may lose the answer, too.
		_, _ = io.CopyN(io.Discard, c, maxDiscard)
		return h, errors.New(reply.reason)
	}
	return h, c.SetDeadline(time.Time{})
}

// handshakeTime bounds a handshake. It is long, since it includes the TLS handshake of a machine that may be
// overloaded.
func (cs *connections) handshakeTime() time.Duration { return max(2*cs.opts.Timeout, time.Second) }

// dialError marks errors from before a connection was established.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// connect dials and does the dialing side of the handshake.
func (cs *connections) connect(ctx context.Context, address string, h hello) (net.Conn, string, error) {
	h.cluster, h.sender = cs.opts.Cluster, cs.opts.ID
	if h.level == 0 {
		h.level = cs.opts.Level()
	}
	c, err := cs.opts.Dial(ctx, address)
	if err != nil {
		cs.logTLS(ctx, address, err)
		return nil, "", &dialError{fmt.Errorf("connect to the server at %s: %w", address, err)}
	}
	a, err := cs.sendHello(ctx, c, h)
	if err == nil {
		cs.movedServers.recordAddress(a.id, address)
	}
	if err == nil && a.reason == "" {
		return c, a.id, nil
	}
	closeConn(c)
	if err == nil {
		return nil, "", &dialError{&RefusedError{Address: address, ID: a.id, Reason: a.reason}}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cs.logTLS(ctx, address, err)
	return nil, "", &dialError{fmt.Errorf("handshake with the server at %s: %w", address, err)}
}

// logTLS logs a failed TLS handshake occasionally. Raft's own log lines about a peer that cannot be reached are the
// same for a machine that is off.
func (cs *connections) logTLS(ctx context.Context, address string, err error) {
	if reason := tlsFailure(err); reason != "" && cs.ctx.Err() == nil {
		cs.opts.Logger.Log(ctx, cs.untrusted.level(), "could not connect to another server", "address", address, "error", reason)
	}
}

func (cs *connections) sendHello(ctx context.Context, c net.Conn, h hello) (reply, error) {
	defer context.AfterFunc(ctx, func() { closeConn(c) })()
	b, err := h.encode()
	if err != nil {
		return reply{}, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return reply{}, err
		}
	}
	if _, err := c.Write(b); err != nil {
		return reply{}, err
	}
	a, err := readReply(c)
	if err != nil {
		return a, err
	}
	return a, c.SetDeadline(time.Time{})
}

// target returns an address for NetworkTransport that includes the id of the server, since the transport's dialer and
// pool get nothing else.
func target(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(string(id) + "\x00" + string(address))
}

func splitTarget(s raft.ServerAddress) (id, address string) {
	id, address, _ = strings.Cut(string(s), "\x00")
	return id, address
}

// streams is the raft.StreamLayer of one class of connections.
type streams struct {
	*queue
	conns *connections
	class class
}

// Dial connects to the server that a target names, and does the handshake.
func (s *streams) Dial(to raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	timeout := s.conns.opts.Timeout
	if s.class != classBeats {
		timeout = s.conns.handshakeTime()
	}
	ctx, cancel := context.WithTimeout(s.conns.ctx, timeout)
	defer cancel()
	id, address := splitTarget(to)
	h := hello{level: s.conns.opts.Level(), kind: kindRaft, receiver: id}
	if s.class == classSnapshots {
		h.kind = kindSnapshots
	}
	at := s.conns.movedServers.dialAddress(id, address)
	c, _, err := s.conns.connect(ctx, at, h)
	s.conns.movedServers.recordDial(id, address, at, err)
	if err != nil {
		return nil, err
	}
	k := &conn{
		Conn: c, conns: s.conns, peer: s.conns.peer(id), target: string(to), class: s.class, level: h.level, createdAt: time.Now(),
	}
	if !s.conns.register(k) {
		_ = k.Close()
		return nil, &dialError{raft.ErrTransportShutdown}
	}
	if s.conns.opts.Level() != h.level { // EndOlder may not have found it
		_ = k.Close()
		return nil, &dialError{errors.New("the cluster's level was raised meanwhile")}
	}
	return k, nil
}

// queue is a listener for connections after their handshake.
type queue struct {
	address string
	conns   chan net.Conn // unbuffered: a connection has an owner at any time
	closed  chan struct{}
	once    sync.Once
}

func newQueue(address string) *queue {
	return &queue{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return queueAddr(q.address) }

type queueAddr string

func (queueAddr) Network() string  { return "peer" }
func (a queueAddr) String() string { return string(a) }
