// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// kvServer is the store's KV service.
type kvServer struct {
	pb.UnimplementedKVServer
	api *etcdapi.API
}

func (k *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return k.api.Range(ctx, r)
}

func (k *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	return k.api.Put(ctx, r)
}

func (k *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return k.api.DeleteRange(ctx, r)
}

func (k *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	return k.api.Txn(ctx, r)
}

func (k *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return k.api.Compact(ctx, r)
}

// streamChunk is about how many bytes of keys and values one message of a
// streamed range carries.
const streamChunk = 256 << 10

// RangeStream sends a range in pieces. The last one has the header, the count
// and whether there is more.
func (k *kvServer) RangeStream(r *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if err := etcdapi.CheckRangeStream(r); err != nil {
		return err
	}
	resp, err := k.api.Range(stream.Context(), r)
	if err != nil {
		return err
	}
	size, from := 0, 0
	for i, kv := range resp.Kvs {
		size += len(kv.Key) + len(kv.Value)
		if size < streamChunk || i == len(resp.Kvs)-1 {
			continue
		}
		part := &pb.RangeResponse{Kvs: resp.Kvs[from : i+1]}
		if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: part}); err != nil {
			return err
		}
		size, from = 0, i+1
	}
	resp.Kvs = resp.Kvs[from:]
	return stream.Send(&pb.RangeStreamResponse{RangeResponse: resp})
}
