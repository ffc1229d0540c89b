// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	bufferBytes = 4 << 20 // what one direction of a connection holds before writers block
	backlog     = 128     // connections a listener holds before dials wait
)

// Network connects hosts. Its methods may be called at any time by anyone.
type Network struct {
	// One lock for everything: a test's traffic is small, and a change of a
	// link touches many connections at once.
	mu    sync.Mutex
	hosts map[string]*Host
	links map[route]*link
	rand  *rand.Rand
	slow  bool // see Backoff
}

// route is a direction between two hosts.
type route struct{ from, to string }

// link is the state of a route.
type link struct {
	cut           bool
	delay, jitter time.Duration
	largest       int // see Largest
	rate          int // see Rate
}

// New returns a network whose links are all whole and immediate. Its jitter is
// the same each time, see Seed.
func New() *Network {
	return &Network{
		hosts: map[string]*Host{},
		links: map[route]*link{},
		rand:  rand.New(rand.NewPCG(1, 2)),
	}
}

// Seed makes the jitter another sequence.
func (n *Network) Seed(seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rand = rand.New(rand.NewPCG(seed, seed))
}

// Host returns the host with that address, which is any string, and makes it
// when asked for the first time.
func (n *Network) Host(address string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.host(address)
}

func (n *Network) host(address string) *Host {
	h := n.hosts[address]
	if h == nil {
		h = &Host{n: n, address: address, conns: map[*conn]struct{}{}}
		h.changed = sync.NewCond(&n.mu)
		n.hosts[address] = h
	}
	return h
}

// Backoff makes retransmission after Heal as slow as TCP's: what was lost is
// sent again 200 ms after it was first sent, then after twice that, and so on,
// so that a stream stands still for up to as long as the link was cut, while
// new connections are through at once. Without it, Heal delivers at once.
func (n *Network) Backoff(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = on
}

// Cut loses everything from one host to another, until Heal.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut(from, to)
}

func (n *Network) cut(from, to string) {
	l := n.link(from, to)
	if l.cut {
		return
	}
	now := time.Now()
	n.streams(from, to, func(s *stream) {
		s.settle(now)
		s.strand(now)
		s.reader.out.strand(now)
	})
	l.cut = true
	n.watchSilence(from, to)
}

func (n *Network) watchSilence(from, to string) {
	n.streams(from, to, func(s *stream) {
		s.reader.watchSilence()
		s.reader.out.reader.watchSilence()
	})
}

// Heal ends a Cut.
func (n *Network) Heal(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heal(from, to)
}

func (n *Network) heal(from, to string) {
	l := n.link(from, to)
	if !l.cut {
		return
	}
	l.cut = false
	now := time.Now()
	n.streams(from, to, func(s *stream) {
		s.retransmit(now)
		s.refly(now)
		s.reader.out.refly(now)
	})
	n.watchSilence(from, to)
	for _, h := range n.hosts { // dials that block
		h.changed.Broadcast()
	}
}

// Partition cuts both directions between hosts of different groups and heals
// those within a group. Links of hosts in no group stay as they are.
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, a := range groups {
		for j, b := range groups {
			for _, from := range a {
				for _, to := range b {
					switch {
					case i != j:
						n.cut(from, to)
					case from != to:
						n.heal(from, to)
					}
				}
			}
		}
	}
}

// HealAll ends every cut. Delays stay.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	routes := slices.SortedFunc(maps.Keys(n.links), func(a, b route) int { // map order must not decide the jitter
		return slices.Compare([]string{a.from, a.to}, []string{b.from, b.to})
	})
	for _, r := range routes {
		n.heal(r.from, r.to)
	}
}

// Delay makes everything that one host sends to another from now on take d and
// up to jitter more.
func (n *Network) Delay(from, to string, d, jitter time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	l.delay, l.jitter = d, jitter
}

// Largest loses what one host sends to another in one piece of more than so many bytes, and with it all that follows on
// that connection, as where a router drops packets that do not fit. Small ones arrive on other connections. 0 ends it,
// for new connections.
func (n *Network) Largest(from, to string, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).largest = bytes
}

// Rate lets each connection from one host to another carry so many bytes a second from now on. 0, as in the beginning,
// is any number.
func (n *Network) Rate(from, to string, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).rate = bytes
}

// Reset lets all connections of a host die and closes its listeners, as when
// its process crashes. The host can listen and dial again at once.
func (n *Network) Reset(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.host(address)
	for _, c := range h.sorted() {
		c.abort()
	}
	if h.listener != nil {
		h.listener.close()
	}
}

func (n *Network) link(from, to string) *link {
	r := route{from, to}
	l := n.links[r]
	if l == nil {
		l = &link{}
		n.links[r] = l
	}
	return l
}

// transit returns how long something sent now is under way.
func (n *Network) transit(l *link) time.Duration {
	d := l.delay
	if l.jitter > 0 {
		d += time.Duration(n.rand.Int64N(int64(l.jitter)))
	}
	return d
}

// transmittedAt returns when the link has taken so many bytes, if it is free then.
func (l *link) transmittedAt(bytes int, now, free time.Time) time.Time {
	if free.Before(now) {
		free = now
	}
	if l.rate > 0 {
		free = free.Add(time.Duration(bytes) * time.Second / time.Duration(l.rate))
	}
	return free
}

// streams visits the streams of a route in the order of their making.
func (n *Network) streams(from, to string, visit func(*stream)) {
	for _, c := range n.host(from).sorted() {
		if c.remote == to {
			visit(c.out)
			c.changed.Broadcast()
		}
	}
}

// Addr is the address of a host.
type Addr string

// Network returns "mem".
func (Addr) Network() string { return "mem" }

// String returns the address as it was given.
func (a Addr) String() string { return string(a) }

// Host is a place that can listen and dial.
type Host struct {
	n        *Network
	address  string
	changed  *sync.Cond // of n.mu: a link healed, or a listener changed
	listener *listener
	conns    map[*conn]struct{}
	made     uint64 // connections so far, for their order
}

// Listen returns a listener on the host's address. One can be open at a time;
// a second one's Accept fails.
func (h *Host) Listen() net.Listener {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	l := &listener{h: h, inUse: h.listener != nil}
	if !l.inUse {
		h.listener = l
		h.changed.Broadcast()
	}
	return l
}

// Dial connects to the host with that address. It waits, until ctx ends, while
// either direction is cut.
func (h *Host) Dial(ctx context.Context, address string) (net.Conn, error) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.host(address)
	defer context.AfterFunc(ctx, func() { n.wake(to.changed) })()
	out, back := n.link(h.address, address), n.link(address, h.address)

	var arrives time.Time
	for {
		if err := ctx.Err(); err != nil {
			return nil, h.failed(address, err)
		}
		switch now := time.Now(); {
		case out.cut || back.cut:
			arrives = time.Time{} // starts over
		case arrives.IsZero():
			arrives = now.Add(n.transit(out) + n.transit(back))
			if arrives.After(now) {
				timer := time.AfterFunc(arrives.Sub(now), func() { n.wake(to.changed) })
				defer timer.Stop()
				break
			}
			continue
		case now.Before(arrives):
		case to.listener == nil:
			return nil, h.failed(address, syscall.ECONNREFUSED)
		case len(to.listener.waiting) < backlog:
			mine, peerEnd := n.connect(h, to)
			to.listener.waiting = append(to.listener.waiting, peerEnd)
			to.changed.Broadcast()
			return mine, nil
		}
		to.changed.Wait()
	}
}

func (h *Host) failed(address string, err error) error {
	return &net.OpError{Op: "dial", Net: "mem", Source: Addr(h.address), Addr: Addr(address), Err: err}
}

func (n *Network) wake(c *sync.Cond) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c.Broadcast()
}

// sorted returns the host's connections in the order of their making.
func (h *Host) sorted() []*conn {
	return slices.SortedFunc(maps.Keys(h.conns), func(a, b *conn) int { return int(a.number) - int(b.number) })
}

// listener is a host's open door.
type listener struct {
	h       *Host
	inUse   bool // another one was open
	closed  bool
	waiting []*conn
}

func (l *listener) Accept() (net.Conn, error) {
	l.h.n.mu.Lock()
	defer l.h.n.mu.Unlock()
	for {
		switch {
		case l.inUse:
			return nil, fmt.Errorf("memnet: listen on %s: %w", l.h.address, syscall.EADDRINUSE)
		case l.closed:
			return nil, &net.OpError{Op: "accept", Net: "mem", Addr: Addr(l.h.address), Err: net.ErrClosed}
		case len(l.waiting) > 0:
			c := l.waiting[0]
			l.waiting = l.waiting[1:]
			l.h.changed.Broadcast()
			return c, nil
		}
		l.h.changed.Wait()
	}
}

func (l *listener) Close() error {
	l.h.n.mu.Lock()
	defer l.h.n.mu.Unlock()
	l.close()
	return nil
}

func (l *listener) close() {
	if l.closed || l.inUse {
		return
	}
	l.closed = true
	l.h.listener = nil
	for _, c := range l.waiting {
		c.abort()
	}
	l.waiting = nil
	l.h.changed.Broadcast()
}

func (l *listener) Addr() net.Addr { return Addr(l.h.address) }
