// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"sync"
)

// turns limits work under way, in total and of each user. When a user begins much work, only that user waits for it.
type turns struct {
	all chan struct{}
	own int // slots of each user

	mu   sync.Mutex
	each map[string]*turn
}

type turn struct {
	slots chan struct{} // holds the user's work under way
	used  int           // the number of holders of a slot, and of goroutines that wait for one
}

func newTurns(most, own int) *turns {
	return &turns{all: make(chan struct{}, most), own: own, each: map[string]*turn{}}
}

// wait returns when it is the user's turn. release ends the turn. If prepare is given, wait calls it when the user has
// a slot of their own, and only then waits for others.
func (t *turns) wait(ctx context.Context, user string, prepare ...func() error) (release func(), err error) {
	t.mu.Lock()
	own := t.each[user]
	if own == nil {
		own = &turn{slots: make(chan struct{}, t.own)}
		t.each[user] = own
	}
	own.used++
	t.mu.Unlock()
	remove := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.used--; own.used == 0 {
			delete(t.each, user)
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
	case t.all <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err() //nolint:wrapcheck // the caller adds the context
	}
	return func() {
		<-t.all
		leave()
	}, nil
}
