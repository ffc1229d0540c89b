// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"math"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// memory measures which fraction of its memory limit the process uses. Clients are refused before the kernel ends the
// process and with it all connections. The memory of a connection differs by a factor of five, from an idle one to one
// over TLS whose client does not read. The number of connections alone is thus no limit.
type memory struct {
	most    int64 // GOMEMLIMIT in bytes; 0 for none
	next    atomic.Int64
	used    atomic.Int64
	read    func() int64
	collect func() // ends when no garbage is left that was there at its begin

	mu          sync.Mutex // held while collect runs
	nextCollect time.Time
}

const (
	// readEvery is the greatest age of the measured value.
	readEvery = 10 * time.Millisecond
	// collectEvery is the shortest time between two calls of collect. collectShare limits their part of the time: one
	// in so many.
	collectEvery, collectShare = 500 * time.Millisecond, 20
)

func newMemory() *memory {
	m := &memory{read: runtimeMemory, collect: runtime.GC}
	if most := debug.SetMemoryLimit(-1); most < math.MaxInt64 {
		m.most = most
	}
	return m
}

// runtimeMemory returns the number of bytes that GOMEMLIMIT limits, without the free pages of the heap: the runtime
// uses these first, and returns them to the kernel before it exceeds GOMEMLIMIT.
func runtimeMemory() int64 {
	samples := [3]metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(samples[:])
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64() - samples[2].Value.Uint64())
}

// limits returns the limits that the process was started with.
func (p *Proxy) limits() table.Limits {
	return table.Limits{Memory: p.budget.most, Connections: p.options.MaxConnections}
}

// needs reports whether more than so many sixteenths of the limit are in use without garbage, which stays for minutes
// after a burst. Where above is true, it collects garbage first: not in each call, since that takes processor time and
// the caller waits for it.
func (m *memory) needs(sixteenths int64) bool {
	if !m.above(sixteenths) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if began := time.Now(); !began.Before(m.nextCollect) {
		m.collect()
		took := time.Since(began)
		m.nextCollect = began.Add(max(collectEvery, collectShare*took))
		m.used.Store(m.read())
	}
	return m.above(sixteenths)
}

// above reports whether more than so many sixteenths of the limit are in use, with garbage.
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

// Fractions of GOMEMLIMIT, in sixteenths. The kernel ends the process at 21 of them.
const (
	// plenty is the use above which copies of bodies take small buffers.
	plenty = 8
	// scarce is the use above which sources with many connections get no more. short is that above which they lose
	// some.
	scarce, short = 11, 15
	// none is the use above which no request is accepted, and nothing more is received.
	none = 17
)

// hasMemory reports whether there is memory for one more connection or request of a source. When little memory is left,
// only sources with few connections and requests get it.
func (p *Proxy) hasMemory(source netip.Addr) bool {
	switch {
	case !p.budget.above(scarce):
		return true
	case p.exceedsShare(source):
		return !p.budget.needs(scarce)
	case p.budget.needs(none):
		return false
	}
	if p.budget.needs(short) {
		p.shed()
	}
	return true
}

// exceedsShare reports whether a source has more than a sixteenth of MaxConnections in connections and requests.
func (p *Proxy) exceedsShare(source netip.Addr) bool {
	return p.limit.count(source)+p.streams.count(source) > max(1, p.options.MaxConnections/16)
}

func (l *limit) count(source netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[source]
}

// heaviest returns an eighth, plus one, of the connections of the source that has most connections and requests: those
// that have been busy for longest, then those that have been idle for longest.
func (p *Proxy) heaviest() (cut []func()) {
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	var most *source
	heaviest := 0
	for address, s := range p.limit.of {
		if n := s.counts[bySize] + p.streams.count(address); n > heaviest {
			most, heaviest = s, n
		}
	}
	if most == nil {
		return nil
	}
	for _, list := range []*chain{&most.chains[busy], &most.chains[byIdle]} {
		for c := list.first; c != nil && len(cut) <= most.counts[bySize]/8; c = c.after {
			if !c.quic { // see shedQUIC
				cut = append(cut, c.cut)
			}
		}
	}
	return cut
}

// shed closes some connections of the source that has most, so that other sources can be served.
func (p *Proxy) shed() {
	p.shedQUIC()
	now := time.Now().UnixNano()
	if last := p.shedAt.Load(); now < last+int64(readEvery) || !p.shedAt.CompareAndSwap(last, now) {
		return
	}
	for _, cut := range p.heaviest() {
		p.stats.Refused.Add(1)
		p.stats.Limited.Memory.Add(1)
		cut()
	}
}

// errMemory ends a connection on which more is received while no memory is left.
var errMemory = errors.New("the process has no memory left for this client")

// Read implements net.Conn. It checks the memory, since bodies of HTTP/2 are received before a handler reads them, and
// headers before there is a request.
// Empty lines before the first request of a connection without TLS are left out.
func (c *countedTCP) Read(to []byte) (int, error) {
	n, err := c.TCPConn.Read(to)
	if !c.began.Load() {
		if c.plain {
			n, err = dropEmptyLines(to, n, err, c.TCPConn.Read)
		}
		c.began.Store(true)
		c.works(true)
	}
	if p := c.proxy; err == nil && p.budget.above(short) && p.budget.needs(short) {
		if p.exceedsShare(c.address()) || p.budget.above(none) && p.budget.needs(none) {
			p.stats.Limited.Memory.Add(1)
			_ = c.Close() // net/http forgets an error of the first read, in which it looks for HTTP/2
			return 0, errMemory
		}
		p.shed() // many sources may have little each
	}
	return n, err
}

// begin counts the exchange for the limits of requests under way. It returns false when it has answered the request. A
// connection of HTTP/1 has one request at a time, so the connection alone is counted.
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
	if !x.fromProxy { // a trusted proxy sends many clients' requests
		at, _ := netip.ParseAddrPort(x.in.RemoteAddr) // net/http sets a valid address
		source = sourceOfAddress(at.Addr().Unmap().WithZone(""))
	}
	if !x.proxy.hasMemory(source) {
		if x.in.ProtoMajor < 3 { // HTTP/3 has no such header
			x.w.Header().Set("Connection", "close")
		}
		x.proxy.stats.Limited.Memory.Add(1)
		x.answer(http.StatusServiceUnavailable, "the ingress proxy has no memory left for this client")
		return false
	}
	if x.in.ProtoMajor < 2 {
		return true
	}
	if !x.proxy.streams.acquire(source) {
		x.proxy.stats.Limited.Requests.Add(1)
		x.answer(http.StatusServiceUnavailable, "this client has too many requests under way")
		return false
	}
	x.stream, x.streaming = source, true
	return true
}

// finish ends what begin has counted.
func (x *exchange) finish() {
	if x.streaming {
		x.proxy.streams.give(x.stream)
	}
}
