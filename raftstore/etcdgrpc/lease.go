// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// leaseServer is the store's Lease service.
type leaseServer struct {
	pb.UnimplementedLeaseServer
	api *etcdapi.API
}

func (l *leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return l.api.LeaseGrant(ctx, r)
}

func (l *leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return l.api.LeaseRevoke(ctx, r)
}

func (l *leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	return l.api.LeaseTimeToLive(ctx, r)
}

func (l *leaseServer) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	return l.api.LeaseLeases(ctx, r)
}

func (l *leaseServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	ctx := stream.Context()
	requests, failed := receive(stream)
	for {
		select {
		case r := <-requests:
			resp, err := l.api.KeepAlive(ctx, r)
			if err != nil && ctx.Err() != nil {
				return etcdapi.StreamError(ctx)
			}
			if err != nil {
				return err
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		case err := <-failed:
			return endOfStream(err)
		case <-ctx.Done():
			return etcdapi.StreamError(ctx)
		}
	}
}
