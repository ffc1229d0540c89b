// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// leaseKeepAliveTimeout is the time that clientv3 uses for its first keep-alive.
const leaseKeepAliveTimeout = 6 * time.Second

// New returns a new client of the API's store. Its Close ends only its own watches. It has no Cluster and no Auth.
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
	return whileLed(ctx, k.api, k.api.Range, r)
}

func (k kv) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	return whileLed(ctx, k.api, k.api.Put, r)
}

func (k kv) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return whileLed(ctx, k.api, k.api.DeleteRange, r)
}

func (k kv) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return whileLed(ctx, k.api, k.api.Txn, r)
}

func (k kv) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return whileLed(ctx, k.api, k.api.Compact, r)
}

// RangeStream sends the whole answer as one chunk: nothing is copied, so several chunks would save nothing.
func (k kv) RangeStream(ctx context.Context, r *pb.RangeRequest,
	_ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if err := etcdapi.CheckRangeStream(r); err != nil {
		return nil, err
	}
	resp, err := k.Range(ctx, r)
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
