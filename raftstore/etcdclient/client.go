// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// leaseKeepAliveTimeout is what clientv3 uses for its first keep-alive.
const leaseKeepAliveTimeout = 6 * time.Second

// New returns a new client of the API's store. Its Close ends its watches and
// nothing else. Cluster and Auth are not there.
func New(api *etcdapi.API) *kubernetes.Client {
	c := clientv3.NewCtxClient(api.Closing())
	c.KV = clientv3.NewKVFromKVClient(kv{api}, c)
	c.Watcher = newWatcher(api)
	c.Lease = clientv3.NewLeaseFromLeaseClient(lease{api}, c, leaseKeepAliveTimeout)
	c.Maintenance = maintenance{api}
	kc := &kubernetes.Client{Client: c}
	kc.Kubernetes = kc
	return kc
}

// kv is etcd's KV client without a connection.
type kv struct{ api *etcdapi.API }

var _ pb.KVClient = kv{}

func (k kv) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return k.api.Range(ctx, r)
}

func (k kv) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	return k.api.Put(ctx, r)
}

func (k kv) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return k.api.DeleteRange(ctx, r)
}

func (k kv) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.api.Txn(ctx, r)
}

func (k kv) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return k.api.Compact(ctx, r)
}

// RangeStream gives the whole answer as one chunk: nothing is copied, so there
// is nothing to save by cutting it up.
func (k kv) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if err := etcdapi.CheckRangeStream(r); err != nil {
		return nil, err
	}
	resp, err := k.api.Range(ctx, r)
	if err != nil {
		return &oneChunk{err: err}, nil
	}
	return &oneChunk{resp: &pb.RangeStreamResponse{RangeResponse: resp}, err: io.EOF}, nil
}

// oneChunk is a stream of at most one message.
type oneChunk struct {
	grpc.ClientStream
	resp *pb.RangeStreamResponse
	err  error
}

func (o *oneChunk) Recv() (*pb.RangeStreamResponse, error) {
	if resp := o.resp; resp != nil {
		o.resp = nil
		return resp, nil
	}
	return nil, o.err
}

// lease is etcd's Lease client without a connection.
type lease struct{ api *etcdapi.API }

var _ pb.LeaseClient = lease{}

func (l lease) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest, _ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	return l.api.LeaseGrant(ctx, r)
}

func (l lease) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest, _ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	return l.api.LeaseRevoke(ctx, r)
}

func (l lease) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest, _ ...grpc.CallOption) (*pb.LeaseTimeToLiveResponse, error) {
	return l.api.LeaseTimeToLive(ctx, r)
}

func (l lease) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest, _ ...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
	return l.api.LeaseLeases(ctx, r)
}

func (l lease) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], error) {
	ctx, cancel := context.WithCancel(ctx)
	// One message may wait: the client sends without receiving.
	return &keepAliveStream{api: l.api, ctx: ctx, cancel: cancel, requests: make(chan *pb.LeaseKeepAliveRequest, 1)}, nil
}

// keepAliveStream answers each renewal when it is received.
type keepAliveStream struct {
	grpc.ClientStream
	api      *etcdapi.API
	ctx      context.Context
	cancel   context.CancelFunc
	requests chan *pb.LeaseKeepAliveRequest
	once     sync.Once
}

func (k *keepAliveStream) Context() context.Context { return k.ctx }

func (k *keepAliveStream) CloseSend() error {
	k.once.Do(func() { close(k.requests) })
	return nil
}

func (k *keepAliveStream) Send(r *pb.LeaseKeepAliveRequest) error {
	select {
	case k.requests <- r:
		return nil
	case <-k.ctx.Done():
		return etcdapi.ContextError(k.ctx)
	case <-k.api.Closing().Done():
		return rpctypes.ErrGRPCStopped
	}
}

func (k *keepAliveStream) Recv() (*pb.LeaseKeepAliveResponse, error) {
	select {
	case r, ok := <-k.requests:
		if !ok {
			return nil, io.EOF
		}
		return k.api.KeepAlive(k.ctx, r)
	case <-k.ctx.Done():
		return nil, etcdapi.ContextError(k.ctx)
	case <-k.api.Closing().Done():
		return nil, rpctypes.ErrGRPCStopped
	}
}
