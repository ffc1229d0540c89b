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

	"github.com/coracle-k8s/coracle/test/testenv"
)

// saysSoWithin is how long a server may take to report that it has no leader that it can use: a follower goes by raft's
// own timers (docs/adr/0015).
const saysSoWithin = 3 * time.Second

// A server reaches no other server, but its clients reach it. It says so for as long as that lasts, and no longer.
func TestScenarioIsolatedServerSaysSo(t *testing.T) {
	for _, size := range []int{3, 5} {
		for _, who := range []string{"leader", "follower"} {
			t.Run(fmt.Sprintf("%d %s", size, who), func(t *testing.T) {
				stages(t, 1, size, nil, func(c *cluster) {
					c.pass(5 * time.Second)
					victim := c.leader()
					if who == "follower" {
						victim = c.others(victim)[0]
					}
					h := victim.running().Health()
					since, changed := h.WithoutLeader()
					c.endIf(!since.IsZero(), "%s has had no leader since %v before anything happened", victim.name, since)
					c.isolate(victim)
					cut := time.Now()
					select {
					case <-changed:
					case <-time.After(2 * saysSoWithin):
					}
					since, changed = h.WithoutLeader()
					c.endIf(since.Before(cut) || since.After(cut.Add(saysSoWithin)), "cut off at %v, it has had no leader since %v", cut, since)
					for range 6 {
						c.pass(20 * time.Second)
						again, _ := h.WithoutLeader()
						c.failIf(again != since, "it has had no leader since %v, and then since %v", since, again)
						c.failIf(c.writes(victim, 7*time.Second) == nil, "%s is cut off and wrote", victim.name)
					}
					c.net.HealAll()
					select {
					case <-changed:
					case <-time.After(10 * time.Second):
					}
					since, _ = h.WithoutLeader()
					c.failIf(!since.IsZero(), "the links are whole, and it has had no leader since %v", since)
				})
			})
		}
	}
}

// writesAgain is how long a majority that is well may take to write again from its first failed call on. Where attempts
// to connect get no answer, a call fails only after two election timeouts, and an entry for which raft needs another
// connection waits until that attempt fails.
const (
	writesAgain       = 2 * time.Second
	writesAgainSilent = writesAgain + 600*time.Millisecond
	connectsSilent    = 10 * time.Second
)

// dialBlock keeps new connections from being made between some servers. Those that are there stay, as with a
// certificate that ends, a firewall that lets only established connections pass, or a process without file descriptors.
type dialBlock struct {
	shut   atomic.Pointer[func(from, to string) bool] // nil: none
	silent atomic.Bool                                // an attempt to connect gets no answer, instead of an error
}

func (d *dialBlock) tune(o *Options) { o.Network.Dial = d.dial(o.NodeID, o.Network.Dial) }

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

// No new connection is made to one server, from it, or both, while raft's old ones last and carry the leader's
// heartbeats. The others write within seconds, with another leader if need be. Where it is not the leader, the leader
// stays.
func TestScenarioNoNewConnections(t *testing.T) {
	for _, size := range []int{3, 5} {
		for _, who := range []string{"leader", "follower"} {
			for _, way := range []string{"both", "in", "out"} {
				t.Run(fmt.Sprintf("%d %s %s", size, who, way), func(t *testing.T) {
					seeds(t, 1, func(t *testing.T, seed uint64) {
						for _, quiet := range []time.Duration{5 * time.Second, 90 * time.Second} {
							for _, silent := range []bool{false, true} {
								d := &dialBlock{}
								d.silent.Store(silent)
								scenarioOf(t, seed, size, d.tune, func(c *cluster) { noNewConnections(c, d, who == "leader", way, quiet) })
							}
						}
					})
				})
			}
		}
	}
}

func noNewConnections(c *cluster, d *dialBlock, leads bool, way string, quiet time.Duration) {
	c.serves(c.nodes...)
	c.pass(5 * time.Second)
	leader := c.leader()
	victim, term := leader, leader.term()
	if !leads {
		victim = c.others(leader)[0]
	}
	shut := func(from, to string) bool {
		return from == victim.name && way != "in" || to == victim.name && way != "out"
	}
	d.shut.Store(&shut)
	c.pass(quiet)
	what := fmt.Sprintf("quiet for %v, silent: %v: ", quiet, d.silent.Load())
	within := writesAgain
	if d.silent.Load() && quiet > time.Minute {
		within = writesAgainSilent
	} else if d.silent.Load() {
		within = connectsSilent
	}
	began := time.Now()
	for _, n := range c.others(victim) {
		err := c.writes(n, within-time.Since(began))
		c.endIf(err != nil, "%s%s, which is well, wrote nothing within %v: %v", what, n.name, within, err)
	}
	c.Logf("%sa write after %v", what, time.Since(began))
	if d.silent.Load() {
		within = connectsSilent
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); c.pass(time.Second) {
		for _, n := range c.nodes {
			err := c.writes(n, within)
			since, _ := n.running().Health().WithoutLeader()
			says := !since.IsZero()
			c.endIf(err != nil && n != victim, "%s%s, which is well, wrote nothing within %v: %v", what, n.name, within, err)
			c.endIf(err != nil && !says && time.Since(began) > saysSoWithin, "%s%s wrote nothing and does not say so: %v", what, n.name, err)
		}
	}
	grown := c.newest() - term
	c.failIf(grown > 2 || !leads && grown > 0, "%s%d terms since", what, grown)
	d.shut.Store(nil)
	c.pass(5 * time.Second)
	c.serves(c.nodes...)
}

// Some voters cannot connect to the leader, and have no connection for calls left. Where they are no majority, the
// leader stays: they say that they have no leader that they can use, and where their clients find one, until it answers
// them. Where they are one, another server leads.
func TestScenarioSomeCannotCallTheLeader(t *testing.T) {
	for _, of := range []struct{ size, unable int }{{3, 1}, {5, 1}, {5, 2}, {5, 3}} {
		t.Run(fmt.Sprintf("%d of %d", of.unable, of.size), func(t *testing.T) {
			seeds(t, 1, func(t *testing.T, seed uint64) {
				d := &dialBlock{}
				scenarioOf(t, seed, of.size, d.tune, func(c *cluster) { someCannotCall(c, d, of.unable) })
			})
		})
	}
}

func someCannotCall(c *cluster, d *dialBlock, count int) {
	c.serves(c.nodes...)
	leader := c.leader()
	unable, term := c.others(leader)[:count], leader.term()
	shut := func(from, to string) bool {
		return to == leader.name && slices.Contains(names(unable), from)
	}
	d.shut.Store(&shut)
	c.pass(90 * time.Second) // connections for calls are closed when they are unused
	began := time.Now()
	for ; time.Since(began) < 2*time.Minute; c.pass(time.Second) {
		for _, n := range c.nodes {
			err := c.writes(n, writesAgain)
			since, _ := n.running().Health().WithoutLeader()
			c.endIf(err != nil && since.IsZero(), "%s wrote nothing and does not say so: %v", n.name, err)
			c.endIf(err != nil && (count > c.voters(leader)/2 || !contains(unable, n)), "%s wrote nothing: %v", n.name, err)
		}
	}
	grown := c.newest() - term
	if count > len(c.nodes)/2 {
		c.failIf(grown == 0 || grown > 2 || leader.leads(), "%d terms since, and %s leads: %v", grown, leader.name, leader.leads())
	} else {
		c.failIf(grown > 0, "%d terms since", grown)
		for _, n := range unable {
			h := n.running().Health()
			c.failIf(!h.CutOff() || h.OtherLeader() == leader.name, "%s is cut off: %v, and sends its clients to %q", n.name, h.CutOff(), h.OtherLeader())
		}
	}
	d.shut.Store(nil)
	if count > len(c.nodes)/2 { // what the voters noted about its former leadership does not end the next one
		testenv.NoError(c, transferBetween(c.within(10*time.Second), c.leader().running(), leader.running()))
	}
	c.pass(2 * maxUnanswered) // no client calls anything meanwhile
	c.failIf(!leader.leads(), "%s can be called again and does not lead", leader.name)
	for _, n := range c.nodes {
		since, _ := n.running().Health().WithoutLeader()
		c.failIf(!since.IsZero(), "%s has had no leader since %v, and could call it again for %v", n.name, since, 2*maxUnanswered)
	}
	c.serves(c.nodes...)
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

// No call reaches the leader any more, and messages take 80 ms each way. The voters' answers arrive in time all the
// same, and another server is elected.
func TestScenarioUncallableLeaderFarAway(t *testing.T) {
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			stages(t, 2, size, nil, func(c *cluster) {
				c.jitter(80*time.Millisecond, 2*time.Millisecond)
				c.pass(5 * time.Second)
				leader := c.leader()
				c.failCalls(leader)
				err := c.writes(c.others(leader)[0], 5*time.Second)
				c.failIf(err != nil, "no write within 5 s: %v", err)
			})
		})
	}
}

// failCalls keeps new connections from being made from a server and to it, and ends those for calls: raft's heartbeats
// pass where calls fail. It is added to what blocks connections already.
func (c *cluster) failCalls(victim *node) {
	before := c.block.shut.Load()
	shut := func(from, to string) bool {
		return from == victim.host || to == victim.host || before != nil && (*before)(from, to)
	}
	c.block.shut.Store(&shut)
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
