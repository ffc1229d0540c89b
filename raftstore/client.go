// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc"
)

// leaseKeepAliveTimeout is what clientv3 uses for its first keep-alive.
const leaseKeepAliveTimeout = 6 * time.Second

// Client returns a new etcd client whose calls go straight into the store. Its
// Close ends its watches and nothing else. Cluster and Auth are not there.
//
// Keys and values in answers are the store's own memory: read only.
func (s *Store) Client() *kubernetes.Client {
	c := clientv3.NewCtxClient(s.ctx)
	c.KV = clientv3.NewKVFromKVClient(&nativeKV{s}, c)
	c.Watcher = newNativeWatcher(s)
	c.Lease = clientv3.NewLeaseFromLeaseClient(&nativeLease{s}, c, leaseKeepAliveTimeout)
	c.Maintenance = &nativeMaintenance{s}
	kc := &kubernetes.Client{Client: c}
	kc.Kubernetes = kc
	return kc
}

// nativeKV is etcd's KV client without a connection.
type nativeKV struct{ s *Store }

var _ pb.KVClient = (*nativeKV)(nil)

func (k *nativeKV) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return k.s.Range(ctx, r)
}

func (k *nativeKV) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	return k.s.Put(ctx, r)
}

func (k *nativeKV) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return k.s.DeleteRange(ctx, r)
}

func (k *nativeKV) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.s.Txn(ctx, r)
}

func (k *nativeKV) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return k.s.Compact(ctx, r)
}

// RangeStream gives the whole answer as one chunk: nothing is copied, so there
// is nothing to save by cutting it up.
func (k *nativeKV) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if err := checkRangeStream(r); err != nil {
		return nil, err
	}
	resp, err := k.s.Range(ctx, r)
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

// nativeLease is etcd's Lease client without a connection.
type nativeLease struct{ s *Store }

var _ pb.LeaseClient = (*nativeLease)(nil)

func (l *nativeLease) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest, _ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	return l.s.LeaseGrant(ctx, r)
}

func (l *nativeLease) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest, _ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	return l.s.LeaseRevoke(ctx, r)
}

func (l *nativeLease) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest, _ ...grpc.CallOption) (*pb.LeaseTimeToLiveResponse, error) {
	return l.s.LeaseTimeToLive(ctx, r)
}

func (l *nativeLease) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest, _ ...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
	return l.s.LeaseLeases(ctx, r)
}

func (l *nativeLease) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], error) {
	ctx, cancel := context.WithCancel(ctx)
	// One message may wait: the client sends without receiving.
	return &keepAliveStream{s: l.s, ctx: ctx, cancel: cancel, ids: make(chan int64, 1)}, nil
}

// keepAliveStream answers each renewal when it is received.
type keepAliveStream struct {
	grpc.ClientStream
	s      *Store
	ctx    context.Context
	cancel context.CancelFunc
	ids    chan int64
	once   sync.Once
}

func (k *keepAliveStream) Context() context.Context { return k.ctx }

func (k *keepAliveStream) CloseSend() error {
	k.once.Do(func() { close(k.ids) })
	return nil
}

func (k *keepAliveStream) Send(r *pb.LeaseKeepAliveRequest) error {
	select {
	case k.ids <- r.ID:
		return nil
	case <-k.ctx.Done():
		return contextError(k.ctx)
	case <-k.s.ctx.Done():
		return ErrClosed
	}
}

func (k *keepAliveStream) Recv() (*pb.LeaseKeepAliveResponse, error) {
	select {
	case id, ok := <-k.ids:
		if !ok {
			return nil, io.EOF
		}
		return k.s.leaseRenew(k.ctx, id)
	case <-k.ctx.Done():
		return nil, contextError(k.ctx)
	case <-k.s.ctx.Done():
		return nil, ErrClosed
	}
}
