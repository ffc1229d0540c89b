// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// leaseServer serves etcd's Lease service over gRPC.
type leaseServer struct {
	pb.UnsafeLeaseServer
	*etcdapi.API
}

func (l *leaseServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	ctx := stream.Context()
	requests, failed := receive(stream)
	for {
		select {
		case r := <-requests:
			resp, err := l.KeepAlive(ctx, r)
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
