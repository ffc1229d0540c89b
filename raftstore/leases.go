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

type leaseCall struct {
	ID   int64
	Keys bool
}

// RenewLease gives a lease its whole time again. It is the leader that does it.
func (s *Store) RenewLease(ctx context.Context, id int64) (etcdapi.Lease, error) {
	return atLeader(ctx, s, callRenew, leaseCall{ID: id}, s.renewHere)
}

func (s *Store) renewHere(ctx context.Context, r leaseCall) (etcdapi.Lease, error) {
	view, err := s.leading(ctx)
	if err != nil {
		return etcdapi.Lease{}, err
	}
	if !view.HasLease(r.ID) {
		return etcdapi.Lease{}, nil
	}
	ttl, err := s.lessor.renew(ctx, r.ID)
	return etcdapi.Lease{Exists: ttl > 0, Granted: ttl}, err
}

// Lease tells what the leader knows of a lease, with the keys that are attached
// if they are wanted.
func (s *Store) Lease(ctx context.Context, id int64, keys bool) (etcdapi.Lease, error) {
	return atLeader(ctx, s, callLease, leaseCall{ID: id, Keys: keys}, s.leaseHere)
}

func (s *Store) leaseHere(ctx context.Context, r leaseCall) (etcdapi.Lease, error) {
	view, err := s.leading(ctx)
	if err != nil {
		return etcdapi.Lease{}, err
	}
	keys, ttl, ok := view.Lease(r.ID)
	left, known := s.lessor.remaining(r.ID)
	if !ok {
		return etcdapi.Lease{}, nil
	}
	if !known { // this server has ceased to lead just now
		return etcdapi.Lease{}, errNotLeader
	}
	answer := etcdapi.Lease{Exists: true, Granted: ttl, Left: int64(left.Seconds())}
	if r.Keys {
		answer.Keys = keys
	}
	return answer, nil
}

// LeaseIDs lists the leases, those that expire next first: the leader knows.
func (s *Store) LeaseIDs(ctx context.Context) ([]int64, error) {
	return atLeader(ctx, s, callLeases, nothing{}, s.leasesHere)
}

func (s *Store) leasesHere(ctx context.Context, _ nothing) ([]int64, error) {
	view, err := s.leading(ctx)
	if err != nil {
		return nil, err
	}
	leases := view.Leases()
	left := make(map[int64]time.Duration, len(leases))
	ids := make([]int64, len(leases))
	for i, l := range leases {
		ids[i] = l.ID
		left[l.ID], _ = s.lessor.remaining(l.ID)
	}
	slices.SortFunc(ids, func(a, b int64) int { return cmp.Compare(left[a], left[b]) })
	return ids, nil
}

// leading returns the newest view if this server leads for certain.
func (s *Store) leading(ctx context.Context) (*mvcc.View, error) {
	lead, _ := s.leader.get()
	if !lead.Self {
		return nil, errNotLeader
	}
	view, err := s.Linearizable(ctx)
	if now, _ := s.leader.get(); err == nil && now != lead {
		return nil, errNotLeader // the next leader may have confirmed the read
	}
	return view, err
}
