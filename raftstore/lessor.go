// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// lessor is the leader's clock for leases: it knows when each one expires and
// proposes to revoke it then. The state machine knows leases without time. A
// new leader gives every lease its whole TTL again, as etcd does.
type lessor struct {
	clock  clock.WithTicker
	revoke func(ctx context.Context, id int64) error

	mu      sync.Mutex
	leading bool
	expires map[int64]time.Time
	wake    chan struct{} // capacity 1: the earliest expiry may have changed
}

func newLessor(c clock.WithTicker, revoke func(context.Context, int64) error) *lessor {
	return &lessor{clock: c, revoke: revoke, expires: make(map[int64]time.Time), wake: make(chan struct{}, 1)}
}

// promote starts a term with the leases that exist.
func (l *lessor) promote(leases func() []mvcc.Lease) {
	l.mu.Lock()
	l.leading = true // what is granted from here on is noted
	l.mu.Unlock()
	for _, lease := range leases() {
		l.renew(lease.ID, lease.TTL)
	}
}

// demote ends a term.
func (l *lessor) demote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leading = false
	clear(l.expires)
}

// observe is told of every command that was run, here or elsewhere.
func (l *lessor) observe(c mvcc.Command, res mvcc.Result) {
	switch req := c.Request.(type) {
	case *pb.LeaseGrantRequest:
		if granted, ok := res.Response.(*pb.LeaseGrantResponse); ok {
			l.renew(granted.ID, granted.TTL)
		}
	case *pb.LeaseRevokeRequest:
		if res.Err == nil { // one that was refused, for want of a session say, leaves the lease
			l.forget(req.ID)
		}
	}
}

// renew sets a lease's expiry a whole TTL, in seconds, from now.
func (l *lessor) renew(id, ttl int64) {
	l.mu.Lock()
	if !l.leading {
		l.mu.Unlock()
		return
	}
	l.expires[id] = l.clock.Now().Add(time.Duration(ttl) * time.Second)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lessor) forget(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.expires, id)
}

// remaining is the time that a lease still has; false if it is not known.
func (l *lessor) remaining(id int64) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.expires[id]
	return at.Sub(l.clock.Now()), ok
}

// run revokes leases as they expire, until ctx is done. Without leases it
// sleeps.
func (l *lessor) run(ctx context.Context) {
	for {
		expired, wait := l.due()
		for _, id := range expired {
			if err := l.revoke(ctx, id); err != nil && ctx.Err() == nil {
				wait = min(wait, time.Second) // and try again
			}
		}
		timer := l.clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-l.wake:
			timer.Stop()
		case <-timer.C():
		}
	}
}

// due lists the expired leases, and says how long to wait for the next. Waits
// are rounded up, so that leases that expire together are revoked together.
func (l *lessor) due() (expired []int64, wait time.Duration) {
	const idle, grain = 24 * time.Hour, 100 * time.Millisecond
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	wait = idle
	for id, at := range l.expires {
		if left := at.Sub(now); left <= 0 {
			expired = append(expired, id)
		} else {
			wait = min(wait, left+grain)
		}
	}
	return expired, wait
}

// expire is how the lessor revokes.
func (s *Store) expire(ctx context.Context, id int64) error {
	lead, _ := s.lead.get()
	_, err := s.Write(WithTerm(ctx, lead.Term), &pb.LeaseRevokeRequest{ID: id})
	if err == nil || errors.Is(err, rpctypes.ErrGRPCLeaseNotFound) {
		s.lessor.forget(id)
		return nil
	}
	s.log.Warn("could not revoke an expired lease; will try again", "lease", id, "err", err)
	return err
}
