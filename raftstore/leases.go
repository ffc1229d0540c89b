// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
		if err == nil {
			s.lessor.renew(resp.ID, resp.TTL)
		}
		return resp, err
	}
}

// LeaseRevoke serves etcd's Lease.LeaseRevoke.
func (s *Store) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	resp, err := answer[*pb.LeaseRevokeResponse](s, ctx, r)
	if err == nil {
		s.lessor.forget(r.ID)
	}
	return resp, err
}

// leaseRenew is one message of etcd's keep-alive stream. A lease that does not
// exist gets a TTL of 0.
func (s *Store) leaseRenew(ctx context.Context, id int64) (*pb.LeaseKeepAliveResponse, error) {
	view, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseKeepAliveResponse{Header: s.header(), ID: id}
	if _, ttl, ok := view.Lease(id); ok {
		resp.TTL = ttl
		s.lessor.renew(id, ttl)
	}
	return resp, nil
}

// LeaseTimeToLive serves etcd's Lease.LeaseTimeToLive.
func (s *Store) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	view, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header(), ID: r.ID, TTL: -1}
	keys, ttl, ok := view.Lease(r.ID)
	left, known := s.lessor.remaining(r.ID)
	if !ok || !known {
		return resp, nil
	}
	resp.GrantedTTL, resp.TTL = ttl, int64(left.Seconds())
	if r.Keys {
		resp.Keys = keys
	}
	return resp, nil
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
