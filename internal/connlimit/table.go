// SPDX-License-Identifier: Apache-2.0

// Package connlimit limits the number of unauthenticated connections of a port. If a port stopped accepting when it has
// too many, clients that send nothing could close it for all clients. So the port always accepts, and closes the oldest
// unauthenticated connection of the source that has the most. A legitimate client authenticates within a moment, and
// clients of other sources keep their connections. A source is an IPv4 address or a /64 of IPv6.
//
// A Table owns no connection and starts no goroutine. Serve is the loop that the ports of servers share.
package connlimit

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// Table holds the unauthenticated connections, the oldest first. Its zero value allows none.
type Table struct {
	// Max is how many unauthenticated connections there may be.
	Max int
	// MaxPerSource is how many a source may have; 0 for Max. Beyond that its own oldest connection is closed.
	MaxPerSource int
	// FixedAddresses says that no client can choose its address, as pods cannot. A source is then one address of IPv6,
	// too.
	FixedAddresses bool

	mu      sync.Mutex
	waiting list.List            // of connection
	sources map[netip.Prefix]int // number of connections by source; a source without connections is absent
	closed  bool
	evicted uint64 // number of connections that were closed for newer ones
}

type connection struct {
	source    netip.Prefix
	closeConn func()
}

// sourceOf returns the network from which one client can choose its addresses: an IPv4 address, or a /64 of IPv6. All
// connections without an address count as one source.
func (t *Table) sourceOf(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok || tcp == nil {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap()
	bits := address.BitLen()
	if !t.FixedAddresses {
		bits = min(bits, 64)
	}
	prefix, _ := address.WithZone("").Prefix(bits) // does not fail for these lengths
	return prefix
}

// Add adds a connection from remote. If there are then more than Max, it closes the oldest connection of the source
// that has the most. If the source has more than MaxPerSource, it closes the oldest of that source. It returns false if
// the Table is closed. The caller must call done when the connection is authenticated or closed. Until then, the Table
// may call closeConn once. closeConn must not block.
func (t *Table) Add(remote net.Addr, closeConn func()) (done func(), ok bool) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, false
	}
	source := t.sourceOf(remote)
	own := t.waiting.PushBack(connection{source, closeConn})
	if t.sources == nil {
		t.sources = map[netip.Prefix]int{}
	}
	t.sources[source]++
	var evicted func()
	if e := t.surplus(source); e != nil {
		evicted = e.Value.(connection).closeConn
		t.remove(e)
		t.evicted++
	}
	t.mu.Unlock()
	if evicted != nil {
		evicted()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.remove(own)
	}, true
}

// surplus returns the connection to close after one of a source was added, or nil: the oldest of the source that has
// the most connections. Of several such sources, it takes the one with the oldest connection.
func (t *Table) surplus(added netip.Prefix) *list.Element {
	most := 0
	switch {
	case t.MaxPerSource > 0 && t.sources[added] > t.MaxPerSource:
		most = t.sources[added] // no other source has so many
	case t.waiting.Len() > t.Max:
		for _, n := range t.sources {
			most = max(most, n)
		}
	default:
		return nil
	}
	e := t.waiting.Front()
	for t.sources[e.Value.(connection).source] < most {
		e = e.Next()
	}
	return e
}

// remove removes a connection, unless that is done already.
func (t *Table) remove(e *list.Element) {
	before := t.waiting.Len()
	source := t.waiting.Remove(e).(connection).source
	if t.waiting.Len() == before {
		return
	}
	if t.sources[source]--; t.sources[source] == 0 {
		delete(t.sources, source)
	}
}

// count returns how many connections are in the table, and how many were closed for newer ones.
func (t *Table) count() (open int, closed uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting.Len(), t.evicted
}

// Close closes all connections in the table. The table accepts none from then on.
func (t *Table) Close() {
	t.mu.Lock()
	t.closed = true
	var all []func()
	for t.waiting.Len() > 0 {
		all = append(all, t.waiting.Front().Value.(connection).closeConn)
		t.remove(t.waiting.Front())
	}
	t.mu.Unlock()
	for _, closeConn := range all {
		closeConn()
	}
}
