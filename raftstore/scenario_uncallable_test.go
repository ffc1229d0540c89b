// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// dialBlock keeps new connections from being made between some servers. Those that are there stay, as with a
// certificate that ends, a firewall that lets only established connections pass, or a process without file descriptors.
type dialBlock struct {
	shut   atomic.Pointer[func(from, to string) bool] // nil: none
	silent atomic.Bool                                // an attempt to connect gets no answer, instead of an error
}

// add keeps connections from being made besides those that are kept from it already.
func (d *dialBlock) add(shut func(from, to string) bool) {
	before := d.shut.Load()
	d.shut.Store(new(func(from, to string) bool { return shut(from, to) || before != nil && (*before)(from, to) }))
}

func (d *dialBlock) dial(name string, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		switch shut := d.shut.Load(); {
		case shut == nil || !(*shut)(name, address):
			return dial(ctx, address)
		case d.silent.Load():
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, errors.New("tls: certificate has expired or is not yet valid")
	}
}

// Links between servers are cut at random, one way or both. After a while each server is asked to write. A server that
// cannot, while another one can, says so: its nodes are to turn to the other.
func TestScenarioCutsAreReported(t *testing.T) {
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			stages(t, 1, size, nil, func(c *cluster) {
				for range 4 {
					cutsAreReported(c)
				}
			})
		})
	}
}

func cutsAreReported(c *cluster) {
	c.pass(5 * time.Second)
	var story []string
	often, oneWay := 0.15+0.5*c.rand.Float64(), c.rand.IntN(3) == 0
	for i, a := range c.nodes {
		for _, b := range c.nodes[:i] {
			there := c.rand.Float64() < often
			back := there && !oneWay || oneWay && c.rand.Float64() < often/2
			if there {
				c.net.Cut(a.name, b.name)
				story = append(story, a.name+" to "+b.name)
			}
			if back {
				c.net.Cut(b.name, a.name)
				story = append(story, b.name+" to "+a.name)
			}
		}
	}
	c.pass(75 * time.Second)
	var unable []*node
	for _, n := range c.nodes {
		if c.writes(n, 7*time.Second) != nil {
			unable = append(unable, n)
		}
	}
	for _, n := range unable {
		since, _ := n.running().Health().WithoutLeader()
		c.failIf(len(unable) < len(c.nodes) && since.IsZero(),
			"cut from %s: %s cannot write, others can, and it does not say so", strings.Join(story, ", "), n.name)
	}
	c.net.HealAll()
	c.pass(15 * time.Second)
	c.serves(c.nodes...)
}

// failCalls keeps new connections from being made from a server and to it, and ends those for calls: raft's heartbeats
// pass where calls fail. It is added to what blocks connections already.
func (c *cluster) failCalls(victim *node) {
	c.block.add(func(from, to string) bool { return from == victim.host || to == victim.host })
	for _, n := range c.nodes {
		s := n.running()
		if s == nil {
			continue
		}
		for _, m := range s.replica.raft.GetConfiguration().Configuration().Servers {
			if n == victim || dialAddress(m.Address) == victim.host {
				s.replication.CloseCalls(string(m.Address))
			}
		}
	}
}

// A firewall refuses what one follower dials to the leader's machine, and the connection on which it hears the leader
// breaks now and then. The others hear the leader, so it stays.
func TestScenarioOneIsRefused(t *testing.T) {
	seeds(t, 3, func(t *testing.T, seed uint64) {
		type way struct{ from, to string }
		var mu sync.Mutex
		var refused way
		conns := map[way][]net.Conn{}
		tune := func(o *Options) {
			name, dial := o.NodeID, o.Network.Dial
			o.Network.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				this := way{name, address}
				mu.Lock()
				refuse := this == refused
				mu.Unlock()
				if refuse {
					return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
				}
				conn, err := dial(ctx, address)
				if err == nil {
					mu.Lock()
					conns[this] = append(conns[this], conn)
					mu.Unlock()
				}
				return conn, err
			}
		}
		stage(t, seed, 3, tune, func(c *cluster) {
			leader := c.leader()
			term, one := leader.term(), c.others(leader)[0]
			mu.Lock()
			refused = way{one.name, leader.name}
			mu.Unlock()
			for range 10 {
				c.pass(5*time.Second + time.Duration(c.rand.Int64N(int64(time.Second))))
				mu.Lock()
				broken := conns[way{leader.name, one.name}]
				delete(conns, way{leader.name, one.name})
				mu.Unlock()
				for _, conn := range broken {
					_ = conn.Close() // some are already
				}
			}
			c.pass(time.Second)
			if grown := c.leader().term() - term; grown > 0 || !leader.leads() {
				t.Errorf("seed %d: %d elections, though only one server does not reach the leader", seed, grown)
			}
		})
	})
}

// heldCalls holds up what servers send on connections for calls; raft's messages pass.
type heldCalls struct {
	to    []string                      // who gets none
	until atomic.Pointer[chan struct{}] // closed when they go on; nil while they are not held up
}

func (h *heldCalls) begin(to []string) { h.to = to; h.until.Store(new(make(chan struct{}))) }
func (h *heldCalls) end()              { close(*h.until.Swap(nil)) }

func (h *heldCalls) dial(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
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
	if until := c.held.until.Load(); until != nil && c.kind == kindCalls && slices.Contains(c.held.to, c.to) {
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
