// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"sync"
)

// userSlots limits the work under way, in total and of each user. When a user begins much work, only that user waits.
type userSlots struct {
	total   chan struct{}
	perUser int // slots of each user

	mu     sync.Mutex
	byUser map[string]*oneUsersSlots
}

type oneUsersSlots struct {
	slots chan struct{} // holds the user's work under way
	used  int           // the number of holders of a slot, and of goroutines that wait for one
}

func newUserSlots(most, own int) *userSlots {
	return &userSlots{total: make(chan struct{}, most), perUser: own, byUser: map[string]*oneUsersSlots{}}
}

// acquire waits for one of the user's slots, and then for one of all users' slots. release releases both. If prepare is
// given, acquire calls it between the two waits.
func (t *userSlots) acquire(ctx context.Context, user string, prepare ...func() error) (release func(), err error) {
	t.mu.Lock()
	own := t.byUser[user]
	if own == nil {
		own = &oneUsersSlots{slots: make(chan struct{}, t.perUser)}
		t.byUser[user] = own
	}
	own.used++
	t.mu.Unlock()
	remove := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.used--; own.used == 0 {
			delete(t.byUser, user)
		}
	}
	select {
	case own.slots <- struct{}{}:
	case <-ctx.Done():
		remove()
		return nil, ctx.Err() //nolint:wrapcheck // the caller adds the context
	}
	leave := func() {
		<-own.slots
		remove()
	}
	for _, f := range prepare {
		if err := f(); err != nil {
			leave()
			return nil, err
		}
	}
	select {
	case t.total <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err() //nolint:wrapcheck // the caller adds the context
	}
	return func() {
		<-t.total
		leave()
	}, nil
}
