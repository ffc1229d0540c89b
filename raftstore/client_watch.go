// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// nativeWatcher is etcd's watcher without a connection: one goroutine for each
// watch, which sleeps until the hub has something for it.
type nativeWatcher struct {
	s      *Store
	ctx    context.Context // ends with the client or the store
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup
	// streams groups watches as etcd's client groups them into gRPC streams,
	// by their context's metadata: RequestProgress is for one group.
	streams map[string]map[*watch.Watcher]struct{}
}

var _ clientv3.Watcher = (*nativeWatcher)(nil)

func newNativeWatcher(s *Store) *nativeWatcher {
	n := &nativeWatcher{s: s, streams: make(map[string]map[*watch.Watcher]struct{})}
	n.ctx, n.cancel = context.WithCancel(s.ctx)
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
func (n *nativeWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpWatch(key, opts...)
	out := make(chan clientv3.WatchResponse)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.ctx.Err() != nil || ctx.Err() != nil {
		close(out)
		return out
	}
	req := watchRequest(op)
	if err := checkWatch(req); err != nil {
		refused := make(chan clientv3.WatchResponse, 1)
		refused <- clientv3.WatchResponse{Header: n.s.header(), Canceled: true, CancelReason: status.Convert(err).Message()}
		close(refused)
		return refused
	}
	w, present := n.s.watches.Watch(req)
	header := n.s.headerAt(present)
	stream := streamKey(ctx)
	if n.streams[stream] == nil {
		n.streams[stream] = make(map[*watch.Watcher]struct{})
	}
	n.streams[stream][w] = struct{}{}
	n.tasks.Go(func() {
		defer close(out)
		defer n.forget(stream, w)
		n.follow(ctx, w, op, header, out)
	})
	return out
}

func watchRequest(op clientv3.Op) *pb.WatchCreateRequest {
	key := op.KeyBytes()
	if len(key) == 0 {
		key = []byte{0} // the smallest key: etcd's way to say all
	}
	r := &pb.WatchCreateRequest{
		Key: key, RangeEnd: op.RangeBytes(), StartRevision: op.Rev(),
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

func (n *nativeWatcher) follow(ctx context.Context, w *watch.Watcher, op clientv3.Op, created *pb.ResponseHeader, out chan<- clientv3.WatchResponse) {
	required := requiresLeader(metadata.FromOutgoingContext(ctx))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	following, lonely, release := n.s.requireLeader(ctx, required)
	defer release()
	send := func(r clientv3.WatchResponse) bool {
		select {
		case out <- r:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if op.IsCreatedNotify() && !send(clientv3.WatchResponse{Header: created, Created: true}) {
		return
	}
	for {
		d, err := w.Next(following)
		if err != nil && lonely() {
			send(clientv3.WatchResponse{Header: n.s.header(), Canceled: true, CancelReason: status.Convert(rpctypes.ErrGRPCNoLeader).Message()})
		}
		if err != nil {
			return
		}
		resp := clientv3.WatchResponse{Header: n.s.header(), Events: d.Events, CompactRevision: d.Compacted}
		resp.Header.Revision = d.Revision
		if d.Compacted > 0 {
			resp.Canceled = true
			resp.CancelReason = status.Convert(rpctypes.ErrGRPCCompacted).Message()
			resp.Header.Revision = n.s.fsm.view().Revision()
		}
		if !send(resp) || resp.Canceled {
			return
		}
	}
}

func (n *nativeWatcher) forget(stream string, w *watch.Watcher) {
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
func (n *nativeWatcher) RequestProgress(ctx context.Context) error {
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
func (n *nativeWatcher) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.tasks.Wait()
	return nil
}
