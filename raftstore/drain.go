// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"sync"
)

// underWay counts the writes through this server that have no answer yet, in sets: a set holds those that began between
// two calls of Drain.
type underWay struct {
	mu   sync.Mutex
	now  *writes
	open []*writes // sets of before that are not empty
}

type writes struct {
	n      int
	closed bool
	none   chan struct{} // closed when it is closed and empty
}

// begin counts a write until the function that it returns is called.
func (u *underWay) begin() (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now == nil {
		u.now = &writes{none: make(chan struct{})}
	}
	set := u.now
	set.n++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if set.n--; set.n == 0 && set.closed {
			close(set.none)
			u.open = slices.DeleteFunc(u.open, func(w *writes) bool { return w == set })
		}
	}
}

// before are the sets of all writes that have begun.
func (u *underWay) before() []*writes {
	u.mu.Lock()
	defer u.mu.Unlock()
	if set := u.now; set != nil && set.n > 0 {
		set.closed = true
		u.open, u.now = append(u.open, set), nil
	}
	return slices.Clone(u.open)
}

// Drain returns when every write through this server that had begun has ended: it is done, or will never be, or it was
// given up and its outcome is open. One that was given up comes before whatever this server writes afterwards, or
// never. One without a leader may take as long as its context allows.
func (s *Store) Drain(ctx context.Context) error {
	for _, set := range s.writer.writes.before() {
		select {
		case <-set.none:
		case <-ctx.Done():
			return contextError(ctx)
		case <-s.replica.ctx.Done():
			return ErrClosed
		}
	}
	return nil
}
