// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"sync/atomic"

	"github.com/quic-go/quic-go/http3"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// limits are the limits of clients' connections and requests, and of the memory that they take.
type limits struct {
	maxConnections int
	stats          *Stats
	memory         *memoryBudget
	connections    connections
	requests       requestLimit // under way, of clients that may have several on one connection
	shedAt         atomic.Int64 // when shed last closed connections

	quic       connections
	quicOpen   map[*quicConnection]struct{} // after their handshake; quic.mu guards it
	quicShedAt atomic.Int64                 // when shedQUIC last closed connections
}

func newLimits(most int, stats *Stats) *limits {
	return &limits{
		maxConnections: most, stats: stats, memory: newMemoryBudget(), connections: newConnections(most),
		requests: requestLimit{limit: most, bySource: map[netip.Addr]int{}},
		quic:     newConnections(max(1, most/quicFraction)), quicOpen: map[*quicConnection]struct{}{},
	}
}

// table returns the limits that the process was started with.
func (l *limits) table() table.Limits {
	return table.Limits{Memory: l.memory.limit, Connections: l.maxConnections}
}

// admit counts a new connection of a source, which may close another one. It returns nil for one that is refused.
func (l *limits) admit(to *connections, source netip.Addr) *counted {
	if !l.hasMemory(source) {
		l.stats.Refused.Add(1)
		l.stats.Limited.Memory.Add(1)
		return nil
	}
	c, cut := to.acquire(source)
	if cut != nil || c == nil {
		l.stats.Refused.Add(1)
		l.stats.Limited.Connections.Add(1)
	}
	if cut != nil {
		cut()
	}
	return c
}

// hasMemory reports whether there is memory for one more connection or request of a source. When little memory is left,
// only sources with few connections and requests get it.
func (l *limits) hasMemory(source netip.Addr) bool {
	switch {
	case !l.memory.exceeds(sourcesLimited):
		return true
	case l.exceedsShare(source):
		return !l.memory.aboveAfterGC(sourcesLimited)
	case l.memory.aboveAfterGC(requestsRefused):
		return false
	}
	if l.memory.aboveAfterGC(sourcesShed) {
		l.shed()
	}
	return true
}

// exceedsShare reports whether a source has more than a sixteenth of MaxConnections in connections and requests.
func (l *limits) exceedsShare(source netip.Addr) bool {
	return l.connections.count(source)+l.requests.count(source) > max(1, l.maxConnections/16)
}

// heaviest returns an eighth, plus one, of the connections of the source that has most connections and requests: those
// that have been busy for longest, then those that have been idle for longest.
func (l *limits) heaviest() (cut []func()) {
	l.connections.mu.Lock()
	defer l.connections.mu.Unlock()
	var most *source
	heaviest := 0
	for address, s := range l.connections.sources {
		if n := s.counts[bySize] + l.requests.count(address); n > heaviest {
			most, heaviest = s, n
		}
	}
	if most == nil {
		return nil
	}
	for _, list := range []*chain{&most.chains[busy], &most.chains[byIdle]} {
		for c := list.first; c != nil && len(cut) <= most.counts[bySize]/8; c = c.after {
			if !c.quic { // see shedQUIC
				cut = append(cut, c.closeConn)
			}
		}
	}
	return cut
}

// shed closes some connections of the source that has most, so that other sources can be served.
func (l *limits) shed() {
	l.shedQUIC()
	if !claimMoment(&l.shedAt) {
		return
	}
	for _, cut := range l.heaviest() {
		l.stats.Refused.Add(1)
		l.stats.Limited.Memory.Add(1)
		cut()
	}
}

// shedQUIC closes some connections of the source that has most of those with quicHeld bytes received. The memory that
// they hold is unknown: a stream whose header does not end takes 50 KB, and a stream that was not accepted is counted
// nowhere.
func (l *limits) shedQUIC() {
	if !claimMoment(&l.quicShedAt) {
		return
	}
	for _, c := range l.heaviestQUIC() {
		l.stats.Refused.Add(1)
		l.stats.Limited.Memory.Add(1)
		c.close(http3.ErrCodeExcessiveLoad, "no memory is left")
	}
}

// heaviestQUIC returns an eighth, plus one, of the connections with quicHeld bytes received, of the source with most of
// them.
func (l *limits) heaviestQUIC() (out []*quicConnection) {
	l.quic.mu.Lock()
	defer l.quic.mu.Unlock()
	of := map[netip.Addr][]*quicConnection{}
	for c := range l.quicOpen {
		if c.conn.ConnectionStats().BytesReceived >= quicHeld {
			of[c.source] = append(of[c.source], c)
		}
	}
	for _, all := range of {
		if len(all) > len(out) {
			out = all
		}
	}
	return out[:min(len(out), len(out)/8+1)]
}
