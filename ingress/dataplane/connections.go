// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
)

// connections limits the open connections of clients, in total and for each source, which may have half of them. It
// keeps the process below its memory limit, and lets no source take all connections. A source is an IPv4 address, or a
// /64 prefix of IPv6. One machine may be several sources, so the limit for each source does not suffice: once there are
// as many connections as there may be, a new one takes the place of another, as in nginx. That is the longest idle one
// of the source with most idle ones. While none is idle, it is the one that has been busy for longest, of the source
// with most connections, if that keeps no fewer than the new one's source then has. All operations take constant time.
type connections struct {
	limit int

	mu      sync.Mutex
	total   int
	sources map[netip.Addr]*source
	// ranks orders the sources by their numbers of idle connections, and by those of all connections.
	ranks [2]ranking
}

// Indexes of rankings and counts. chains has only byIdle and busy.
const byIdle, bySize, busy = 0, 1, 1

// source holds the connections of one source. connections.mu guards it.
type source struct {
	address netip.Addr
	counts  [2]int
	places  [2]int   // in ranking.order
	chains  [2]chain // the idle ones, and the busy ones
}

// counted is a connection that counts for a limit.
type counted struct {
	limit *connections
	// The mutex of limit guards what follows. closeConn is nil while the connection cannot be closed in favour of
	// another one. source is nil once the connection does not count any more. in is the chain that has the connection.
	closeConn     func()
	source        *source
	in            *chain
	before, after *counted
	quic          bool
}

// chain is a list of connections. The one that has been in it for longest is the first.
type chain struct{ first, last *counted }

func (l *chain) add(c *counted) {
	c.in, c.before, c.after = l, l.last, nil
	if l.last != nil {
		l.last.after = c
	} else {
		l.first = c
	}
	l.last = c
}

func (l *chain) remove(c *counted) {
	if c.before != nil {
		c.before.after = c.after
	} else {
		l.first = c.after
	}
	if c.after != nil {
		c.after.before = c.before
	} else {
		l.last = c.before
	}
	c.in, c.before, c.after = nil, nil, nil
}

// ranking orders sources by one of their counts, the greatest first. countsAbove[n] is how many sources have a count
// above n.
type ranking struct {
	countIndex  int
	order       []*source
	countsAbove []int
}

func (r *ranking) swap(i, j int) {
	r.order[i], r.order[j] = r.order[j], r.order[i]
	r.order[i].places[r.countIndex], r.order[j].places[r.countIndex] = i, j
}

// add adds a source whose count is 0. remove removes one.
func (r *ranking) add(s *source) {
	s.places[r.countIndex] = len(r.order)
	r.order = append(r.order, s)
}

func (r *ranking) remove(s *source) {
	last := len(r.order) - 1
	r.swap(s.places[r.countIndex], last)
	r.order[last] = nil
	r.order = r.order[:last]
}

// increment increments the count of a source, and moves the source behind those with a greater count.
func (r *ranking) increment(s *source) {
	n := s.counts[r.countIndex]
	if n == len(r.countsAbove) {
		r.countsAbove = append(r.countsAbove, 0)
	}
	r.swap(s.places[r.countIndex], r.countsAbove[n])
	r.countsAbove[n]++
	s.counts[r.countIndex]++
}

func (r *ranking) decrement(s *source) {
	s.counts[r.countIndex]--
	n := s.counts[r.countIndex]
	r.countsAbove[n]--
	r.swap(s.places[r.countIndex], r.countsAbove[n])
}

func newConnections(most int) connections {
	return connections{limit: most, sources: map[netip.Addr]*source{}, ranks: [2]ranking{{countIndex: byIdle}, {countIndex: bySize}}}
}

// acquire counts a connection. c is nil when there are too many. The caller closes another connection by cut, which is
// nil for none: that one made room, and does not count any more. An invalid address has no limit of its own.
func (l *connections) acquire(address netip.Addr) (c *counted, cut func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sourceIsFull(address) || l.total >= l.limit {
		victim := l.victim(address)
		if victim == nil {
			return nil, nil
		}
		cut = victim.closeConn
		l.remove(victim)
	}
	c = &counted{limit: l}
	l.add(c, address)
	return c, cut
}

// sourceIsFull reports whether a source has as many connections as it may have. The caller holds mu, also for the
// methods below.
func (l *connections) sourceIsFull(address netip.Addr) bool {
	return address.IsValid() && l.size(address) >= max(1, l.limit/2)
}

func (l *connections) size(address netip.Addr) int {
	if s := l.sources[address]; s != nil {
		return s.counts[bySize]
	}
	return 0
}

// victim returns the connection that makes room for one of a source. It returns nil if none does.
func (l *connections) victim(address netip.Addr) *counted {
	if l.sourceIsFull(address) {
		return l.sources[address].chains[byIdle].first // others' connections are not its business
	}
	if order := l.ranks[byIdle].order; len(order) > 0 && order[0].chains[byIdle].first != nil {
		return order[0].chains[byIdle].first
	}
	for _, s := range l.ranks[bySize].order[:min(2, len(l.sources))] { // of trusted proxies no busy one is closed
		if s.address.IsValid() {
			if s.counts[bySize] > l.size(address)+1 {
				return s.chains[busy].first
			}
			break
		}
	}
	return nil
}

func (l *connections) add(c *counted, address netip.Addr) {
	s := l.sources[address]
	if s == nil {
		s = &source{address: address}
		l.sources[address] = s
		for i := range l.ranks {
			l.ranks[i].add(s)
		}
	}
	l.total++
	l.ranks[bySize].increment(s)
	c.source = s
}

func (l *connections) remove(c *counted) {
	s := c.source
	l.moveToChain(c, nil)
	l.total--
	l.ranks[bySize].decrement(s)
	if c.source = nil; s.counts[bySize] == 0 {
		for i := range l.ranks {
			l.ranks[i].remove(s)
		}
		delete(l.sources, s.address)
	}
}

// moveToChain moves a connection to a chain of its source, or out of its chain if the new one is nil.
func (l *connections) moveToChain(c *counted, to *chain) {
	idle := &c.source.chains[byIdle]
	if c.in == idle {
		l.ranks[byIdle].decrement(c.source)
	}
	if c.in != nil {
		c.in.remove(c)
	}
	if to == idle {
		l.ranks[byIdle].increment(c.source)
	}
	if to != nil {
		to.add(c)
	}
}

// count returns the number of a source's connections.
func (l *connections) count(address netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size(address)
}

// exceeds reports whether a source has the given number of connections, or all sources have four times as many.
func (l *connections) exceeds(address netip.Addr, many int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size(address) >= many || l.total >= 4*many
}

// opened says how the connection is closed. It may be closed to make room from now on, and is idle.
func (c *counted) opened(cut func()) {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if c.source != nil {
		c.closeConn = cut
		c.limit.moveToChain(c, &c.source.chains[byIdle])
	}
}

// setBusy says whether a request of the client is under way on the connection.
func (c *counted) setBusy(now bool) {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if c.source == nil || c.closeConn == nil {
		return
	}
	to := &c.source.chains[byIdle]
	if now {
		to = &c.source.chains[busy]
	}
	if c.in != to {
		c.limit.moveToChain(c, to)
	}
}

// uncount stops counting the connection, which is closed.
func (c *counted) uncount() {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if c.source != nil {
		c.limit.remove(c)
	}
}

// countFor makes a connection without a source count for the given one. It returns false when that source has too many.
// The caller closes another connection by cut, as after acquire.
func (c *counted) countFor(address netip.Addr) (cut func(), ok bool) {
	l := c.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.source == nil {
		return nil, false
	}
	if l.sourceIsFull(address) {
		victim := l.victim(address)
		if victim == nil {
			return nil, false
		}
		cut = victim.closeConn
		l.remove(victim)
	}
	l.remove(c)
	l.add(c, address)
	if c.closeConn != nil {
		l.moveToChain(c, &c.source.chains[busy])
	}
	return cut, true
}

// address returns the address of the source that the connection counts for. It is invalid for none.
func (c *counted) address() netip.Addr {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	if c.source == nil {
		return netip.Addr{}
	}
	return c.source.address
}

// counting returns the connection itself, for types that embed it.
func (c *counted) counting() *counted { return c }

// countedOf returns the counted connection of a server's connection. It returns nil for one that does not count.
func countedOf(conn net.Conn) *counted {
	for {
		switch c := conn.(type) {
		case *tls.Conn:
			conn = c.NetConn()
		case *helloConn:
			conn = c.Conn
		case interface{ counting() *counted }:
			return c.counting()
		default:
			return nil
		}
	}
}
