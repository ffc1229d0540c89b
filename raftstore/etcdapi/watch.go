// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Watch starts a watcher and returns the answer that says so. If the request is
// refused there is no watcher, and the answer says why.
func (a *API) Watch(r *pb.WatchCreateRequest) (*watch.Watcher, *pb.WatchResponse) {
	if len(r.Key) == 0 {
		r.Key = []byte{0} // the smallest key: etcd's way to say all
	}
	if err := checkWatch(r); err != nil {
		return nil, a.RefuseWatch(err)
	}
	w, present := a.o.Watches.Watch(r)
	return w, &pb.WatchResponse{Header: a.headerAt(present), WatchId: r.WatchId, Created: true}
}

// RefuseWatch is the answer to a watch that cannot be made.
func (a *API) RefuseWatch(why error) *pb.WatchResponse {
	return &pb.WatchResponse{
		Header: a.Header(), WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true,
		CancelReason: status.Convert(why).Message(),
	}
}

// WatchResponse is what a watch's client hears of a delivery. A watch that is
// cancelled by it has ended.
func (a *API) WatchResponse(d watch.Delivery) *pb.WatchResponse {
	if d.Compacted > 0 {
		resp := a.EndWatch(rpctypes.ErrGRPCCompacted)
		resp.CompactRevision = d.Compacted
		return resp
	}
	return &pb.WatchResponse{Header: a.headerAt(d.Revision), Events: d.Events}
}

// EndWatch is what the client of a watch hears that the server ends.
func (a *API) EndWatch(why error) *pb.WatchResponse {
	return &pb.WatchResponse{Header: a.Header(), Canceled: true, CancelReason: status.Convert(why).Message()}
}

// RequireLeader returns a context that also ends when there has been no leader
// for long, if the request's metadata require one: then its client would rather
// lose the stream than hear nothing from a server that is cut off
// (clientv3.WithRequireLeader). NoLeader says whether that was why.
func (a *API) RequireLeader(ctx context.Context, md metadata.MD) (_ context.Context, release func()) {
	if !slices.Contains(md.Get(rpctypes.MetadataRequireLeaderKey), rpctypes.MetadataHasLeader) {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(a.o.Store.WithoutLeader(), func() { cancel(rpctypes.ErrGRPCNoLeader) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// NoLeader says whether a context of RequireLeader ended for want of a leader.
func NoLeader(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), rpctypes.ErrGRPCNoLeader)
}
