// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// leases answers requests about leases. It sends them to the leader, which alone has the leases' expiry.
type leases struct {
	leaderRoute
	lessor *lessor
}

type leaseCall struct {
	ID   int64
	Keys bool
}

// RenewLease gives a lease its whole TTL again. It sends the request to the leader.
func (l *leases) RenewLease(ctx context.Context, id int64) (etcdapi.Lease, error) {
	return atLeader(ctx, l.leaderRoute, callRenew, leaseCall{ID: id}, l.renewHere)
}

func (l *leases) renewHere(ctx context.Context, r leaseCall) (etcdapi.Lease, error) {
	view, err := l.leading(ctx)
	if err != nil {
		return etcdapi.Lease{}, err
	}
	if !view.HasLease(r.ID) {
		return etcdapi.Lease{}, nil
	}
	ttl, err := l.lessor.renew(ctx, r.ID)
	return etcdapi.Lease{Exists: ttl > 0, Granted: ttl}, err
}

// Lease returns what the leader knows of a lease. If keys is true, that includes the keys that are attached to it.
func (l *leases) Lease(ctx context.Context, id int64, keys bool) (etcdapi.Lease, error) {
	return atLeader(ctx, l.leaderRoute, callLease, leaseCall{ID: id, Keys: keys}, l.leaseHere)
}

func (l *leases) leaseHere(ctx context.Context, r leaseCall) (etcdapi.Lease, error) {
	view, err := l.leading(ctx)
	if err != nil {
		return etcdapi.Lease{}, err
	}
	keys, ttl, ok := view.Lease(r.ID)
	left, known := l.lessor.remainingTTL(r.ID)
	if !ok {
		return etcdapi.Lease{}, nil
	}
	if !known { // this server has just stopped leading
		return etcdapi.Lease{}, errNotLeader
	}
	answer := etcdapi.Lease{Exists: true, Granted: ttl, Left: int64(left.Seconds())}
	if r.Keys {
		answer.Keys = keys
	}
	return answer, nil
}

// LeaseIDs lists the leases in the order of their expiry, as the leader knows it.
func (l *leases) LeaseIDs(ctx context.Context) ([]int64, error) {
	return atLeader(ctx, l.leaderRoute, callLeases, emptyReply{}, l.leasesHere)
}

func (l *leases) leasesHere(ctx context.Context, _ emptyReply) ([]int64, error) {
	view, err := l.leading(ctx)
	if err != nil {
		return nil, err
	}
	leases := view.Leases()
	left := make(map[int64]time.Duration, len(leases))
	ids := make([]int64, len(leases))
	for i, lease := range leases {
		ids[i] = lease.ID
		left[lease.ID], _ = l.lessor.remainingTTL(lease.ID)
	}
	slices.SortFunc(ids, func(a, b int64) int { return cmp.Compare(left[a], left[b]) })
	return ids, nil
}

// leading returns the newest view if it is certain that this server leads.
func (l *leases) leading(ctx context.Context) (*mvcc.View, error) {
	lead, _ := l.leader.get()
	if !lead.Self {
		return nil, errNotLeader
	}
	view, err := l.replication.linearizable(ctx)
	if now, _ := l.leader.get(); err == nil && now != lead {
		return nil, errNotLeader // a later leader may have confirmed the read
	}
	return view, err
}
