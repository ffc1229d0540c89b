// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"container/heap"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// revokesInFlight is how many expired leases are revoked at the same time. It is as many as in etcd. These
	// revocations share log entries.
	revokesInFlight = 16
	// revokeRetry is how long to wait after a revocation that failed.
	revokeRetry = time.Second
	// expiryGrain is added to each wait for an expiry, so that leases that expire at almost the same time are revoked
	// at once.
	expiryGrain = 100 * time.Millisecond
	// noExpiry is how long to wait where there is no lease.
	noExpiry = 24 * time.Hour
)

// lessor decides on the leader when a lease expires, and proposes to revoke it then. The state machine stores leases
// without expiry times. A new leader gives every lease its whole TTL again, as etcd does.
//
// Once the lessor has decided to revoke a lease, the lease cannot be renewed any more. A request to renew it waits
// until it is revoked, and then gets the answer that it does not exist. So an acknowledged keep-alive always holds.
// etcd does the same (server/lease/lessor.go, Renew).
type lessor struct {
	clock  clock.WithTicker
	revoke func(ctx context.Context, id int64) error

	mu         sync.Mutex
	leading    bool
	termEnded  chan struct{} // closed when the present term ends
	leases     map[int64]*expiry
	expiryHeap expiries      // the leases that are not being revoked
	revoking   []*expiry     // the leases that are being revoked
	wake       timers.Signal // sent when a lease expires earlier than all others
}

// expiry is a lease with the time at which it expires.
type expiry struct {
	id        int64
	ttl       int64 // in seconds
	expiresAt time.Time
	index     int           // in lessor.order; -1 if the lease is being revoked
	revoked   chan struct{} // closed when the lease is revoked
}

func newLessor(c clock.WithTicker, revoke func(context.Context, int64) error) *lessor {
	return &lessor{clock: c, revoke: revoke, leases: make(map[int64]*expiry), wake: timers.NewSignal()}
}

// promote begins a term of leadership with the existing leases.
func (l *lessor) promote(leases func() []mvcc.Lease) {
	l.mu.Lock()
	l.leading, l.termEnded = true, make(chan struct{}) // leases that are granted from now on are added
	l.mu.Unlock()
	for _, lease := range leases() {
		l.add(lease.ID, lease.TTL)
	}
}

// demote ends a term of leadership.
func (l *lessor) demote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading {
		close(l.termEnded)
	}
	l.leading = false
	clear(l.leases)
	l.expiryHeap, l.revoking = nil, nil
}

// observe is called with every command that was run, from whichever server, in the order of the log. Nothing else may
// remove a lease: when a client's answer to a revocation arrives, the same id may have been granted again.
func (l *lessor) observe(c mvcc.Command, res mvcc.Result) {
	switch req := c.Request.(type) {
	case *pb.LeaseGrantRequest:
		if granted, ok := res.Response.(*pb.LeaseGrantResponse); ok {
			l.add(granted.ID, granted.TTL)
		}
	case *pb.LeaseRevokeRequest:
		// A revocation that was refused, for example for lack of a session, does not revoke the lease.
		if res.Err == nil || errors.Is(res.Err, rpctypes.ErrGRPCLeaseNotFound) {
			l.removeLease(req.ID)
		}
	}
}

// add adds a lease that expires after its whole TTL, in seconds, from now.
func (l *lessor) add(id, ttl int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leading || l.leases[id] != nil {
		return
	}
	e := &expiry{id: id, ttl: ttl, expiresAt: l.fromNow(ttl), revoked: make(chan struct{})}
	l.leases[id] = e
	heap.Push(&l.expiryHeap, e)
	if e.index > 0 {
		return
	}
	l.wake.Send()
}

func (l *lessor) fromNow(ttl int64) time.Time {
	return l.clock.Now().Add(time.Duration(ttl) * time.Second)
}

// renew gives a lease its whole TTL again and returns the TTL, in seconds. It returns 0 if the lease does not exist. If
// the lease is being revoked, it waits until that is done. It fails if this server does not lead, or stops leading.
func (l *lessor) renew(ctx context.Context, id int64) (ttl int64, err error) {
	l.mu.Lock()
	if !l.leading {
		l.mu.Unlock()
		return 0, errNotLeader
	}
	e, demoted := l.leases[id], l.termEnded
	if e == nil {
		l.mu.Unlock()
		return 0, nil
	}
	if e.index >= 0 {
		defer l.mu.Unlock()
		e.expiresAt = l.fromNow(e.ttl)
		heap.Fix(&l.expiryHeap, e.index) // the lease expires later now: run wakes once without need
		return e.ttl, nil
	}
	l.mu.Unlock()
	select {
	case <-e.revoked:
		return 0, nil
	case <-demoted:
		return 0, errNotLeader
	case <-ctx.Done():
		return 0, contextError(ctx)
	}
}

// removeLease removes a lease that was revoked.
func (l *lessor) removeLease(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.leases[id]
	if e == nil {
		return
	}
	delete(l.leases, id)
	if e.index >= 0 {
		heap.Remove(&l.expiryHeap, e.index)
	}
	close(e.revoked)
}

// remainingTTL returns the time until a lease expires, and false if the lease is not known.
func (l *lessor) remainingTTL(id int64) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.leases[id]
	if e == nil {
		return 0, false
	}
	return max(0, e.expiresAt.Sub(l.clock.Now())), true
}

// run revokes leases as they expire, until ctx is done. Without leases it sleeps.
func (l *lessor) run(ctx context.Context) {
	for {
		var failed bool
		expired, wait := l.expiredLeases()
		for len(expired) > 0 && !failed && ctx.Err() == nil {
			failed = !l.revokeAll(ctx, expired)
			expired, wait = l.expiredLeases()
		}
		if failed {
			wait = min(wait, revokeRetry)
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

// revokeAll revokes leases concurrently and waits for all. It says whether all are revoked.
func (l *lessor) revokeAll(ctx context.Context, leases []*expiry) bool {
	errs := make([]error, len(leases))
	var revoking sync.WaitGroup
	for i, e := range leases {
		revoking.Go(func() { errs[i] = l.revoke(ctx, e.id) })
	}
	revoking.Wait()
	return errors.Join(errs...) == nil
}

// expiredLeases returns the leases to revoke now, beginning with those whose revocation failed before. It also returns
// how long to wait if there is none.
func (l *lessor) expiredLeases() (expired []*expiry, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoking = slices.DeleteFunc(l.revoking, func(e *expiry) bool { return l.leases[e.id] != e })
	now := l.clock.Now()
	for len(l.revoking) < revokesInFlight && len(l.expiryHeap) > 0 && !l.expiryHeap[0].expiresAt.After(now) {
		l.revoking = append(l.revoking, heap.Pop(&l.expiryHeap).(*expiry))
	}
	wait = noExpiry
	if len(l.expiryHeap) > 0 {
		wait = max(0, l.expiryHeap[0].expiresAt.Sub(now)) + expiryGrain
	}
	return slices.Clone(l.revoking), wait
}

// expiries is a heap of leases, the earliest first.
type expiries []*expiry

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].expiresAt.Before(h[j].expiresAt) }
func (h expiries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *expiries) Push(x any) {
	e := x.(*expiry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *expiries) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = -1
	return e
}

// expire revokes a lease for the lessor. The lessor removes the lease only in observe. If it removed it here, it could
// send a second revocation while the first is under way, and that could revoke a new lease with the same id.
func (w *writer) expire(ctx context.Context, id int64) error {
	_, err := w.runOwn(ctx, &pb.LeaseRevokeRequest{ID: id})
	if err == nil || errors.Is(err, rpctypes.ErrGRPCLeaseNotFound) {
		return nil
	}
	if ctx.Err() == nil {
		w.log.Warn("could not revoke an expired lease; will try again", "lease", id, "err", err)
	}
	return err
}
