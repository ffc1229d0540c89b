// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"math"
	"net/http"
	"net/netip"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// memory says how much of its limit the process uses, so that clients are refused before the kernel ends the process
// with everybody's connections. What a connection takes differs by a factor of five, from an idle one to one over TLS
// that does not read, and so their number alone bounds nothing.
type memory struct {
	most int64 // GOMEMLIMIT in bytes; 0 for none
	next atomic.Int64
	used atomic.Int64
	read func() int64
}

// readEvery is how old the measure may be.
const readEvery = 10 * time.Millisecond

func newMemory() *memory {
	m := &memory{read: runtimeMemory}
	if most := debug.SetMemoryLimit(-1); most < math.MaxInt64 {
		m.most = most
	}
	return m
}

// runtimeMemory is what GOMEMLIMIT limits.
func runtimeMemory() int64 {
	samples := [2]metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples[:])
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}

// above reports whether so many sixteenths of the limit are in use.
func (m *memory) above(sixteenths int64) bool {
	if m.most == 0 {
		return false
	}
	now := time.Now().UnixNano()
	if next := m.next.Load(); now >= next && m.next.CompareAndSwap(next, now+int64(readEvery)) {
		m.used.Store(m.read())
	}
	return m.used.Load() > m.most/16*sixteenths
}

// Parts of GOMEMLIMIT, in sixteenths. The kernel ends the process at 21 of them.
const (
	// plenty is where copies of bodies begin to take small buffers.
	plenty = 8
	// scarce is where sources that have much get no more, and short where they lose connections.
	scarce, short = 11, 15
	// none is where no request gets anything.
	none = 17
)

// hasMemory reports whether there is memory for one more connection or request of a source. When little is left,
// sources that have little get it.
func (p *Proxy) hasMemory(source netip.Addr) bool {
	switch {
	case !p.budget.above(scarce):
		return true
	case p.exceedsShare(source) || p.budget.above(none):
		return false
	}
	if p.budget.above(short) {
		p.shed()
	}
	return true
}

// exceedsShare reports whether a source has more than a sixteenth of what all may have.
func (p *Proxy) exceedsShare(source netip.Addr) bool {
	return p.limit.count(source)+p.streams.count(source) > max(1, p.options.MaxConnections/16)
}

func (l *limit) count(source netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[source]
}

// heaviest are an eighth of the connections of the source that has most of them and of requests.
func (p *Proxy) heaviest() []*countedTCP {
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	var most netip.Addr
	heaviest := 0
	for source, n := range p.limit.of {
		if n += p.streams.count(source); n > heaviest {
			most, heaviest = source, n
		}
	}
	var out []*countedTCP
	for c := range p.limit.open {
		if c.source == most && len(out) <= p.limit.of[most]/8 {
			out = append(out, c)
		}
	}
	return out
}

// shed closes some connections of the source that has most, so that others can be served.
func (p *Proxy) shed() {
	p.shedQUIC()
	now := time.Now().UnixNano()
	if last := p.shedAt.Load(); now < last+int64(readEvery) || !p.shedAt.CompareAndSwap(last, now) {
		return
	}
	for _, c := range p.heaviest() {
		p.stats.Refused.Add(1)
		_ = c.Close()
	}
}

// errMemory ends a connection that brings more while no memory is left.
var errMemory = errors.New("the process has no memory left for this client")

// of is the source that the connection counts for.
func (c *counted) of() netip.Addr {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	return c.source
}

// Read implements net.Conn. Bodies of HTTP/2 are read before anybody asks for them.
func (c *countedTCP) Read(to []byte) (int, error) {
	n, err := c.TCPConn.Read(to)
	if p := c.proxy; err == nil && p.budget.above(short) && p.exceedsShare(c.of()) {
		return 0, errMemory
	}
	return n, err
}

// begin takes the exchange's part of what all may have at a time; false says that it has been answered. A connection of
// HTTP/1 has one request at a time, and is counted itself.
func (x *exchange) begin() bool {
	if x.hops = hopsOf(x.in.Header); x.hops >= maxHops {
		x.answer(http.StatusLoopDetected,
			"the request has passed too many ingress proxies: a backend or an authentication server leads back here")
		return false
	}
	if len(x.in.Header) > maxFields {
		x.answer(http.StatusRequestHeaderFieldsTooLarge, "the header of the request has too many fields")
		return false
	}
	if x.in.ProtoMajor < 2 && !x.proxy.budget.above(scarce) {
		return true
	}
	var source netip.Addr
	if !x.fromProxy { // a trusted proxy has many clients' requests
		at, _ := netip.ParseAddrPort(x.in.RemoteAddr) // of net/http: it is one
		source = sourceOfAddress(at.Addr().Unmap().WithZone(""))
	}
	if !x.proxy.hasMemory(source) {
		if x.in.ProtoMajor < 3 { // HTTP/3 has no such header
			x.w.Header().Set("Connection", "close")
		}
		x.answer(http.StatusServiceUnavailable, "the ingress proxy has no memory left for this client")
		return false
	}
	if x.in.ProtoMajor < 2 {
		return true
	}
	if !x.proxy.streams.acquire(source) {
		x.answer(http.StatusServiceUnavailable, "this client has too many requests under way")
		return false
	}
	x.stream, x.streaming = source, true
	return true
}

// finish gives back what begin took.
func (x *exchange) finish() {
	if x.streaming {
		x.proxy.streams.give(x.stream)
	}
}
