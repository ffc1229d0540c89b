// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"io"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// lease is etcd's Lease client without a connection.
type lease struct{ api *etcdapi.API }

var _ pb.LeaseClient = lease{}

func (l lease) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest, _ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	return whileLed(ctx, l.api, l.api.LeaseGrant, r)
}

func (l lease) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest, _ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	return whileLed(ctx, l.api, l.api.LeaseRevoke, r)
}

func (l lease) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest,
	_ ...grpc.CallOption) (*pb.LeaseTimeToLiveResponse, error) {
	return whileLed(ctx, l.api, l.api.LeaseTimeToLive, r)
}

func (l lease) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest, _ ...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
	return whileLed(ctx, l.api, l.api.LeaseLeases, r)
}

func (l lease) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest,
	pb.LeaseKeepAliveResponse], error) {
	// The capacity of requests is 1, so that one message can wait: the client sends without receiving.
	k := &keepAliveStream{api: l.api, ctx: ctx, requests: make(chan *pb.LeaseKeepAliveRequest, 1)}
	if requiresLeader(ctx) {
		following, release, err := l.api.WhileLeader(ctx)
		if err != nil {
			k.openErr = err // as over a connection, where the stream is made first and then fails
			return k, nil
		}
		context.AfterFunc(following, release)
		k.ctx = following
	}
	return k, nil
}

// keepAliveStream renews a lease when the client receives the answer.
type keepAliveStream struct {
	grpc.ClientStream
	api      *etcdapi.API
	ctx      context.Context
	requests chan *pb.LeaseKeepAliveRequest
	openErr  error // the error of a stream that failed from the beginning
	once     sync.Once
}

func (k *keepAliveStream) Context() context.Context { return k.ctx }

func (k *keepAliveStream) CloseSend() error {
	k.once.Do(func() { close(k.requests) })
	return nil
}

func (k *keepAliveStream) Send(r *pb.LeaseKeepAliveRequest) error {
	if k.openErr != nil {
		return k.openErr
	}
	select {
	case k.requests <- r:
		return nil
	case <-k.ctx.Done():
		return etcdapi.StreamError(k.ctx)
	case <-k.api.Closing().Done():
		return rpctypes.ErrGRPCStopped
	}
}

func (k *keepAliveStream) Recv() (*pb.LeaseKeepAliveResponse, error) {
	if k.openErr != nil {
		return nil, k.openErr
	}
	select {
	case r, ok := <-k.requests:
		if !ok {
			return nil, io.EOF
		}
		resp, err := k.api.KeepAlive(k.ctx, r)
		if err != nil && k.ctx.Err() != nil {
			err = etcdapi.StreamError(k.ctx)
		}
		return resp, err
	case <-k.ctx.Done():
		return nil, etcdapi.StreamError(k.ctx)
	case <-k.api.Closing().Done():
		return nil, rpctypes.ErrGRPCStopped
	}
}
