// SPDX-License-Identifier: Apache-2.0

// Package halfopen bounds the connections of a port that have not said yet who they are. A port that stops accepting
// when there are too many can be closed to everybody by clients that say nothing. So it accepts always, and hangs up on
// the connection that has waited longest: whoever has something to say needs a moment only.
//
// A Table owns no connection and starts no goroutine; Serve is the loop that the ports of servers have in common.
package halfopen

import (
	"container/list"
	"sync"
)

// Table holds what waits, the oldest first. Its zero value has no room.
type Table struct {
	// Max is how many connections may wait.
	Max int

	mu      sync.Mutex
	waiting list.List // of func(), which hang up
	closed  bool
}

// Add takes a connection in and, if there are more than Max then, hangs up on the oldest. It returns false if the Table
// is closed. Done must be called when the connection has said who it is, or is gone. HangUp may be called until then,
// once; it must not block.
func (t *Table) Add(hangUp func()) (done func(), ok bool) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, false
	}
	own := t.waiting.PushBack(hangUp)
	var oldest func()
	if t.waiting.Len() > t.Max {
		oldest = t.waiting.Remove(t.waiting.Front()).(func())
	}
	t.mu.Unlock()
	if oldest != nil {
		oldest()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waiting.Remove(own) // nothing, if it had to make room
	}, true
}

// Close hangs up on all that wait, and takes nothing in any more.
func (t *Table) Close() {
	t.mu.Lock()
	t.closed = true
	var all []func()
	for t.waiting.Len() > 0 {
		all = append(all, t.waiting.Remove(t.waiting.Front()).(func()))
	}
	t.mu.Unlock()
	for _, hangUp := range all {
		hangUp()
	}
}
