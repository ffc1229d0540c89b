// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"errors"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// watcher is etcd's watcher without a connection: one goroutine for each
// watch, which sleeps until the hub has something for it.
type watcher struct {
	api    *etcdapi.API
	ctx    context.Context // ends with the client or the store
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup
	// streams groups watches as etcd's client groups them into gRPC streams,
	// by their context's metadata: RequestProgress is for one group.
	streams map[string]map[*watch.Watcher]struct{}
}

var _ clientv3.Watcher = (*watcher)(nil)

func newWatcher(api *etcdapi.API) *watcher {
	n := &watcher{api: api, streams: make(map[string]map[*watch.Watcher]struct{})}
	n.ctx, n.cancel = context.WithCancel(api.Closing())
	return n
}

func streamKey(ctx context.Context) string {
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%+v", map[string][]string(md))
}

// Watch follows a key or range. The channel is closed when ctx, the client or
// the store ends, and after a response with an error.
func (n *watcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpWatch(key, opts...)
	out := make(chan clientv3.WatchResponse)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.ctx.Err() != nil || ctx.Err() != nil {
		close(out)
		return out
	}
	w, created := n.api.Watch(watchRequest(op))
	if w == nil {
		refused := make(chan clientv3.WatchResponse, 1)
		created.Created = false // as etcd's client has it
		refused <- toClient(created)
		close(refused)
		return refused
	}
	stream := streamKey(ctx)
	if n.streams[stream] == nil {
		n.streams[stream] = make(map[*watch.Watcher]struct{})
	}
	n.streams[stream][w] = struct{}{}
	n.tasks.Go(func() {
		defer close(out)
		defer n.forget(stream, w)
		n.follow(ctx, w, op, created, out)
	})
	return out
}

func watchRequest(op clientv3.Op) *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{
		Key: op.KeyBytes(), RangeEnd: op.RangeBytes(), StartRevision: op.Rev(),
		PrevKv: op.IsPrevKV(), ProgressNotify: op.IsProgressNotify(),
	}
	if op.IsFilterPut() {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NOPUT)
	}
	if op.IsFilterDelete() {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NODELETE)
	}
	return r
}

// toClient is a response as etcd's client shows it.
func toClient(r *pb.WatchResponse) clientv3.WatchResponse {
	return clientv3.WatchResponse{
		Header: r.Header, Events: r.Events, CompactRevision: r.CompactRevision,
		Created: r.Created, Canceled: r.Canceled, CancelReason: r.CancelReason,
	}
}

func (n *watcher) follow(ctx context.Context, w *watch.Watcher, op clientv3.Op, created *pb.WatchResponse, out chan<- clientv3.WatchResponse) {
	md, _ := metadata.FromOutgoingContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	following, release := n.api.RequireLeader(ctx, md)
	defer release()
	send := func(r *pb.WatchResponse) bool {
		select {
		case out <- toClient(r):
			return true
		case <-ctx.Done():
			return false
		}
	}
	if op.IsCreatedNotify() && !send(created) {
		return
	}
	for {
		d, err := w.Next(following)
		if err != nil && etcdapi.NoLeader(following) {
			send(n.api.EndWatch(rpctypes.ErrGRPCNoLeader))
		}
		if err != nil {
			return
		}
		resp := n.api.WatchResponse(d)
		if !send(resp) || resp.Canceled {
			return
		}
	}
}

func (n *watcher) forget(stream string, w *watch.Watcher) {
	w.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.streams[stream], w)
	if len(n.streams[stream]) == 0 {
		delete(n.streams, stream)
	}
}

// RequestProgress makes every watch with the same metadata as ctx report how
// far it is.
func (n *watcher) RequestProgress(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.New("raftstore: the watcher is closed")
	}
	for w := range n.streams[streamKey(ctx)] {
		w.RequestProgress()
	}
	return nil
}

// Close ends every watch and waits for their goroutines.
func (n *watcher) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.tasks.Wait()
	return nil
}
