// SPDX-License-Identifier: Apache-2.0

// Package connlimit bounds the connections of a port that have not said yet who they are. A port that stops accepting
// when there are too many can be closed to everybody by clients that say nothing. So it accepts always, and closes
// a connection of the source that has the most of them, the one that has waited longest: a client that has something to
// say needs a moment only, and clients of other sources keep theirs. A source is an IPv4 address or a /64 of IPv6.
//
// A Table owns no connection and starts no goroutine; Serve is the loop that the ports of servers have in common.
package connlimit

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// Table holds what waits, the oldest first. Its zero value has no room.
type Table struct {
	// Max is how many connections may wait.
	Max int

	mu      sync.Mutex
	waiting list.List            // of connection
	sources map[netip.Prefix]int // how many connections of each source wait; none has 0
	closed  bool
}

type connection struct {
	source    netip.Prefix
	closeConn func()
}

// sourceOf is the network that a client can choose its addresses from: its address, of IPv6 the /64. What has no
// address is one source.
func sourceOf(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok || tcp == nil {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap()
	prefix, _ := address.WithZone("").Prefix(min(address.BitLen(), 64)) // it fails for no such length
	return prefix
}

// Add takes a connection from remote in. If there are more than Max then, it closes the oldest of the source that
// has the most. It returns false if the Table is closed. Done must be called when the connection has said who it is, or
// is gone. closeConn may be called until then, once; it must not block.
func (t *Table) Add(remote net.Addr, closeConn func()) (done func(), ok bool) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, false
	}
	own := t.waiting.PushBack(connection{sourceOf(remote), closeConn})
	if t.sources == nil {
		t.sources = map[netip.Prefix]int{}
	}
	t.sources[sourceOf(remote)]++
	var evicted func()
	if t.waiting.Len() > t.Max {
		e := t.surplus()
		evicted = e.Value.(connection).closeConn
		t.remove(e)
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

// surplus is the oldest connection of the source that has the most, and of several such sources the oldest of all.
func (t *Table) surplus() *list.Element {
	most := 0
	for _, n := range t.sources {
		most = max(most, n)
	}
	e := t.waiting.Front()
	for t.sources[e.Value.(connection).source] < most {
		e = e.Next()
	}
	return e
}

// remove takes a connection out, unless that is done.
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

// Close closes all that wait, and takes nothing in any more.
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
