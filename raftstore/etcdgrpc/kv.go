// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// kvServer serves etcd's KV service over gRPC.
type kvServer struct {
	pb.UnsafeKVServer
	*etcdapi.API
}

// streamChunk is about how many bytes of keys and values are in one message of a streamed range.
const streamChunk = 256 << 10

// RangeStream sends a range in several messages. Only the last one has the header, the count, and says whether there
// are more keys.
func (k *kvServer) RangeStream(r *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if err := etcdapi.CheckRangeStream(r); err != nil {
		return err
	}
	resp, err := k.Range(stream.Context(), r)
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
