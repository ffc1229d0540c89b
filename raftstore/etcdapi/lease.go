// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/convert"
)

const (
	minLeaseTTL = 2             // seconds; a shorter TTL is raised to this, as in etcd
	maxLeaseTTL = 9_000_000_000 // seconds; etcd's limit
)

// LeaseGrant serves etcd's Lease.LeaseGrant.
func (a *API) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.TTL > maxLeaseTTL {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	grant := &pb.LeaseGrantRequest{ID: r.ID, TTL: max(r.TTL, minLeaseTTL)}
	for {
		if r.ID == 0 {
			grant.ID = rand.Int64N(1<<62) + 1
		}
		resp, err := runCommand[*pb.LeaseGrantResponse](ctx, a, grant)
		if errors.Is(err, rpctypes.ErrGRPCLeaseExist) && r.ID == 0 {
			continue // that id exists; another one is chosen
		}
		return resp, err
	}
}

// LeaseRevoke serves etcd's Lease.LeaseRevoke.
func (a *API) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return runCommand[*pb.LeaseRevokeResponse](ctx, a, r)
}

// KeepAlive answers one message of etcd's keep-alive stream. The answer for a lease that does not exist has a TTL of 0.
func (a *API) KeepAlive(ctx context.Context, r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
	// The revision is read before the renewal, as in etcd. Otherwise the lease could have been revoked after the
	// renewal, at an earlier revision than that of the answer.
	header := a.Header()
	lease, err := a.o.Store.RenewLease(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.LeaseKeepAliveResponse{Header: header, ID: r.ID, TTL: lease.Granted}, nil
}

// LeaseTimeToLive serves etcd's Lease.LeaseTimeToLive.
func (a *API) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	lease, err := a.o.Store.Lease(ctx, r.ID, r.Keys)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: a.Header(), ID: r.ID, TTL: -1}
	if lease.Exists {
		resp.GrantedTTL, resp.TTL, resp.Keys = lease.Granted, lease.Left, lease.Keys
	}
	return resp, nil
}

// LeaseLeases serves etcd's Lease.LeaseLeases, in the order of the leases' expiry.
func (a *API) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	ids, err := a.o.Store.LeaseIDs(ctx)
	if err != nil {
		return nil, err
	}
	leases := convert.Slice(ids, func(id int64) *pb.LeaseStatus { return &pb.LeaseStatus{ID: id} })
	return &pb.LeaseLeasesResponse{Header: a.Header(), Leases: leases}, nil
}
