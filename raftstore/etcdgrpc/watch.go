// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// watchServer serves etcd's Watch service over gRPC.
type watchServer struct {
	pb.UnimplementedWatchServer
	api *etcdapi.API
}

// Watch serves one stream of watches. The caller's goroutine handles requests, and each watch has a goroutine that
// sends.
func (ws *watchServer) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	w := &watchStream{api: ws.api, stream: stream, ctx: ctx, watches: make(map[int64]*streamedWatch)}
	defer w.tasks.Wait()
	defer cancel()
	requests, failed := receive(stream)
	for {
		var r *pb.WatchRequest
		var err error
		select {
		case r = <-requests:
		case err = <-failed:
			return endOfStream(err)
		case <-ctx.Done():
			return etcdapi.StreamError(ctx)
		}
		switch u := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			err = w.create(u.CreateRequest)
		case *pb.WatchRequest_CancelRequest:
			err = w.cancel(u.CancelRequest.WatchId)
		case *pb.WatchRequest_ProgressRequest:
			w.progress()
		}
		if err != nil {
			return err
		}
	}
}

type watchStream struct {
	api    *etcdapi.API
	stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	ctx    context.Context
	tasks  sync.WaitGroup

	// sending is held to send, since gRPC allows one sender at a time. Encoding before the lock is taken
	// (grpc.PreparedMsg) was measured and is slower, see BenchmarkWatchGRPC: messages that wait for the lock are sent
	// in one write.
	sending sync.Mutex

	mu      sync.Mutex
	watches map[int64]*streamedWatch
	lastID  int64
}

type streamedWatch struct {
	*watch.Watcher
	id       int64
	fragment bool
	stop     context.CancelFunc
	done     chan struct{} // closed when the watch sends no more
}

func (w *watchStream) send(r *pb.WatchResponse) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	return w.stream.Send(r)
}

// create starts a watch and confirms that before it sends anything else.
func (w *watchStream) create(r *pb.WatchCreateRequest) error {
	id, err := w.newID(r.WatchId)
	if err != nil {
		return w.send(w.api.RefuseWatch(err))
	}
	watcher, created, err := w.api.Watch(w.ctx, r)
	if err != nil && w.ctx.Err() != nil {
		return etcdapi.StreamError(w.ctx)
	}
	if err != nil {
		return err
	}
	if watcher == nil {
		return w.send(created)
	}
	created.WatchId = id
	ctx, stop := context.WithCancel(w.ctx)
	sw := &streamedWatch{Watcher: watcher, id: id, fragment: r.Fragment, stop: stop, done: make(chan struct{})}
	w.mu.Lock()
	w.watches[id] = sw
	w.mu.Unlock()
	if err := w.send(created); err != nil {
		stop()
		sw.Close()
		return err
	}
	w.tasks.Go(func() {
		defer close(sw.done)
		defer stop()
		defer sw.Close()
		w.follow(ctx, sw)
	})
	return nil
}

var errDuplicateWatchID = errors.New("mvcc: duplicate watch ID provided on the WatchStream")

func (w *watchStream) newID(wanted int64) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if wanted != clientv3.AutoWatchID {
		if _, ok := w.watches[wanted]; ok {
			return 0, errDuplicateWatchID
		}
		return wanted, nil
	}
	for {
		id := w.lastID
		w.lastID++
		if _, ok := w.watches[id]; !ok {
			return id, nil
		}
	}
}

// follow sends a watch's events until the watch ends.
func (w *watchStream) follow(ctx context.Context, sw *streamedWatch) {
	for {
		d, err := sw.Next(ctx)
		if err != nil {
			return
		}
		resp := w.api.WatchResponse(d)
		resp.WatchId = sw.id
		if resp.Canceled {
			w.mu.Lock()
			delete(w.watches, sw.id)
			w.mu.Unlock()
		}
		send := w.send
		if sw.fragment {
			send = w.sendFragments
		}
		if send(resp) != nil || resp.Canceled {
			return // the reader also gets the error of a broken stream
		}
	}
}

// sendFragments splits a response that is too large for the client. A single event is sent whatever its size is.
func (w *watchStream) sendFragments(r *pb.WatchResponse) error {
	limit := w.api.MaxRequestBytes()
	for {
		n, size := 0, proto.Size(r.Header)
		for n < len(r.Events) && (n == 0 || size < limit) {
			size += proto.Size(r.Events[n]) + 8
			n++
		}
		if n > 1 && size >= limit {
			n-- // without the event that exceeded the limit
		}
		rest := r.Events[n:]
		part := &pb.WatchResponse{
			Header: r.Header, WatchId: r.WatchId, Events: r.Events[:n:n], Fragment: len(rest) > 0,
			Canceled: r.Canceled, CompactRevision: r.CompactRevision, CancelReason: r.CancelReason,
		}
		if err := w.send(part); err != nil || len(rest) == 0 {
			return err
		}
		r = &pb.WatchResponse{Header: r.Header, WatchId: r.WatchId, Events: append([]*mvccpb.Event(nil), rest...)}
	}
}

// cancel ends a watch. No event of the watch follows the answer.
func (w *watchStream) cancel(id int64) error {
	w.mu.Lock()
	sw := w.watches[id]
	delete(w.watches, id)
	w.mu.Unlock()
	if sw == nil {
		return nil
	}
	sw.stop()
	<-sw.done
	return w.send(&pb.WatchResponse{Header: w.api.Header(), WatchId: id, Canceled: true})
}

func (w *watchStream) progress() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, sw := range w.watches {
		sw.RequestProgress()
	}
}
