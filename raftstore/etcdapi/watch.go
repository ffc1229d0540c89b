// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Watch starts a watcher and returns the answer for the client. If the request is refused there is no watcher, and the
// answer has the reason. A watch without a start revision waits until this server's state is at least as new as that of
// the cluster was when it started.
func (a *API) Watch(ctx context.Context, r *pb.WatchCreateRequest) (*watch.Watcher, *pb.WatchResponse, error) {
	if len(r.Key) == 0 {
		r.Key = []byte{0} // the smallest key: with it etcd's clients mean all keys
	}
	if err := checkWatch(r); err != nil {
		return nil, a.RefuseWatch(err), nil
	}
	if r.StartRevision == 0 {
		if err := a.awaitReady(ctx); err != nil {
			return nil, nil, err
		}
	}
	w, present := a.o.Watches.Watch(r)
	return w, &pb.WatchResponse{Header: a.HeaderAt(present), WatchId: r.WatchId, Created: true}, nil
}

// RefuseWatch returns the answer to a watch that cannot be made.
func (a *API) RefuseWatch(why error) *pb.WatchResponse {
	return &pb.WatchResponse{
		Header: a.Header(), WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true,
		CancelReason: status.Convert(why).Message(),
	}
}

// WatchResponse returns the message about a delivery for a watch's client. A watch whose message is cancelled has
// ended.
func (a *API) WatchResponse(d watch.Delivery) *pb.WatchResponse {
	if d.Compacted > 0 {
		resp := a.EndWatch(rpctypes.ErrGRPCCompacted)
		resp.CompactRevision = d.Compacted
		return resp
	}
	return &pb.WatchResponse{Header: a.HeaderAt(d.Revision), Events: d.Events}
}

// EndWatch returns the message for the client of a watch that the server ends.
func (a *API) EndWatch(why error) *pb.WatchResponse {
	return &pb.WatchResponse{Header: a.Header(), Canceled: true, CancelReason: status.Convert(why).Message()}
}
