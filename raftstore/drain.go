// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"sync"
)

// underWay counts the writes through this server that have no answer yet. It counts them in sets: a set holds the
// writes that began between two calls of Drain.
type underWay struct {
	mu      sync.Mutex
	current *writes
	open    []*writes // earlier sets that are not empty
}

type writes struct {
	n       int
	closed  bool
	drained chan struct{} // closed when the set is closed and empty
}

// beginWrite counts a write until the function that it returns is called.
func (u *underWay) beginWrite() (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.current == nil {
		u.current = &writes{drained: make(chan struct{})}
	}
	set := u.current
	set.n++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if set.n--; set.n == 0 && set.closed {
			close(set.drained)
			u.open = slices.DeleteFunc(u.open, func(w *writes) bool { return w == set })
		}
	}
}

// closeCurrent closes the present set, and returns all sets that are not empty.
func (u *underWay) closeCurrent() []*writes {
	u.mu.Lock()
	defer u.mu.Unlock()
	if set := u.current; set != nil && set.n > 0 {
		set.closed = true
		u.open, u.current = append(u.open, set), nil
	}
	return slices.Clone(u.open)
}

// Drain waits for the end of every write through this server that had begun. A write ends when it is done, when it can
// never be done, or when it was given up and its outcome is open. A write that was given up is done before all that
// this server writes afterwards, or never. A write without a leader may take as long as its context allows.
func (s *Store) Drain(ctx context.Context) error {
	for _, set := range s.writer.writes.closeCurrent() {
		select {
		case <-set.drained:
		case <-ctx.Done():
			return contextError(ctx)
		case <-s.replica.ctx.Done():
			return ErrClosed
		}
	}
	return nil
}
