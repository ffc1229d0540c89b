// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// heldCalls holds up what servers send on connections for calls; raft's messages pass.
type heldCalls struct {
	to    string                        // the only server that gets none, if not ""
	until atomic.Pointer[chan struct{}] // closed when they go on; nil while they are not held up
}

func (h *heldCalls) begin() { h.until.Store(new(make(chan struct{}))) }
func (h *heldCalls) end()   { close(*h.until.Swap(nil)) }

func (h *heldCalls) tune(o *Options) {
	dial := o.Network.Dial
	o.Network.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		c, err := dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return &heldConn{Conn: c, held: h, to: address, closed: make(chan struct{})}, nil
	}
}

// heldConn is a connection that one server dialed.
type heldConn struct {
	net.Conn
	held   *heldCalls
	to     string
	kind   byte // of the handshake, once that is sent
	closed chan struct{}
	once   sync.Once
}

// kindAt is the place of a connection's kind in its handshake, kindCalls that of calls (package peer).
const kindAt, kindCalls = 5, 2

func (c *heldConn) Write(b []byte) (int, error) {
	if c.kind == 0 && len(b) > kindAt {
		c.kind = b[kindAt]
	}
	if until := c.held.until.Load(); until != nil && c.kind == kindCalls && (c.held.to == "" || c.held.to == c.to) {
		select {
		case <-*until:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(b)
}

func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// The leader's disk takes two seconds for a flush, and no other voter answers its question how long theirs take. None
// is known to be faster, so it keeps the leadership.
func TestScenarioSlowLeaderWithoutAnswers(t *testing.T) {
	seeds(t, 3, func(t *testing.T, seed uint64) {
		var held heldCalls
		stage(t, seed, 3, held.tune, func(c *cluster) {
			c.pass(5 * time.Second)
			leader := c.leader()
			term := leader.term()
			held.begin()
			leader.faults.DelayFlushes(2 * time.Second)
			for range 5 {
				if err := c.writes(leader, 10*time.Second); err != nil {
					t.Errorf("seed %d: %v\n%s", seed, err, c.state())
				}
			}
			if !leader.leads() || leader.term() != term {
				t.Errorf("seed %d: it was deposed in term %d\n%s", seed, term, c.state())
			}
			leader.faults.DelayFlushes(0)
			held.end()
			c.serves(c.nodes...)
		})
	})
}
