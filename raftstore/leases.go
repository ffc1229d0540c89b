// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	minLeaseTTL = 2             // seconds; a shorter one is rounded up, as etcd does
	maxLeaseTTL = 9_000_000_000 // seconds; etcd's limit
)

// LeaseGrant serves etcd's Lease.LeaseGrant.
func (s *Store) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.TTL > maxLeaseTTL {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	grant := &pb.LeaseGrantRequest{ID: r.ID, TTL: max(r.TTL, minLeaseTTL)}
	for {
		if r.ID == 0 {
			grant.ID = rand.Int64N(1<<62) + 1
		}
		resp, err := answer[*pb.LeaseGrantResponse](s, ctx, grant)
		if errors.Is(err, rpctypes.ErrGRPCLeaseExist) && r.ID == 0 {
			continue // the same random number twice
		}
		return resp, err
	}
}

// LeaseRevoke serves etcd's Lease.LeaseRevoke.
func (s *Store) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return answer[*pb.LeaseRevokeResponse](s, ctx, r)
}

type leaseCall struct {
	ID   int64
	Keys bool
}

// leaseAnswer is what the leader knows of a lease. Times are in seconds.
type leaseAnswer struct {
	Exists  bool
	Granted int64
	Left    int64
	Keys    [][]byte
}

// leaseRenew is one message of etcd's keep-alive stream. A lease that does not
// exist gets a TTL of 0.
func (s *Store) leaseRenew(ctx context.Context, id int64) (*pb.LeaseKeepAliveResponse, error) {
	lease, err := atLeader(ctx, s, callRenew, leaseCall{ID: id}, s.renewHere)
	if err != nil {
		return nil, err
	}
	return &pb.LeaseKeepAliveResponse{Header: s.header(), ID: id, TTL: lease.Granted}, nil
}

func (s *Store) renewHere(ctx context.Context, r leaseCall) (leaseAnswer, error) {
	view, err := s.leading(ctx)
	if err != nil {
		return leaseAnswer{}, err
	}
	_, ttl, ok := view.Lease(r.ID)
	if ok {
		s.lessor.renew(r.ID, ttl)
	}
	return leaseAnswer{Exists: ok, Granted: ttl}, nil
}

// LeaseTimeToLive serves etcd's Lease.LeaseTimeToLive.
func (s *Store) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	lease, err := atLeader(ctx, s, callLease, leaseCall{ID: r.ID, Keys: r.Keys}, s.leaseHere)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header(), ID: r.ID, TTL: -1}
	if lease.Exists {
		resp.GrantedTTL, resp.TTL, resp.Keys = lease.Granted, lease.Left, lease.Keys
	}
	return resp, nil
}

func (s *Store) leaseHere(ctx context.Context, r leaseCall) (leaseAnswer, error) {
	view, err := s.leading(ctx)
	if err != nil {
		return leaseAnswer{}, err
	}
	keys, ttl, ok := view.Lease(r.ID)
	left, known := s.lessor.remaining(r.ID)
	if !ok {
		return leaseAnswer{}, nil
	}
	if !known { // this server has ceased to lead just now
		return leaseAnswer{}, errNotLeader
	}
	answer := leaseAnswer{Exists: true, Granted: ttl, Left: int64(left.Seconds())}
	if r.Keys {
		answer.Keys = keys
	}
	return answer, nil
}

// leading returns the newest view if this server leads for certain.
func (s *Store) leading(ctx context.Context) (*mvcc.View, error) {
	if s.peers == nil {
		return s.linearizable(ctx)
	}
	lead, _ := s.leader.get()
	if !lead.Self {
		return nil, errNotLeader
	}
	view, err := s.linearizable(ctx)
	if now, _ := s.leader.get(); err == nil && now != lead {
		return nil, errNotLeader // the next leader may have confirmed the read
	}
	return view, err
}

// LeaseLeases serves etcd's Lease.LeaseLeases.
func (s *Store) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	view, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseLeasesResponse{Header: s.header()}
	for _, l := range view.Leases() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: l.ID})
	}
	return resp, nil
}
