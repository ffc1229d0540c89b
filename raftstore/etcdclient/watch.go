// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// watcher is etcd's watcher without a connection. It has one goroutine for each watch, which sleeps until the hub has
// something for the watch.
type watcher struct {
	api    *etcdapi.API
	ctx    context.Context // ends with the client or the store
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup
	// streams groups watches as etcd's client groups them into gRPC streams: by their context's metadata.
	// RequestProgress concerns one group.
	streams map[string]map[*watch.Watcher]struct{}
	// leaderlessSince is when a watch that requires a leader was first refused since the last one began. It is zero if
	// none was.
	leaderlessSince time.Time
}

// firstRefusal and lastRefusal are the shortest and the longest time that a watch waits for a leader before it is
// refused. Upstream's caches begin a refused watch again at once, for 30 s; without a wait that took 25 to 46% of a
// core.
const firstRefusal, lastRefusal = 100 * time.Millisecond, 10 * time.Second

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

type untilKey struct{}

// Until returns a context whose watches also end with end, as they do with the store: the channel is closed after all
// that was sent to it. If the context itself ended, readers such as upstream's might drop a response that they have
// received and still pass on later ones.
func Until(ctx, end context.Context) context.Context {
	return context.WithValue(ctx, untilKey{}, end)
}

// Pace makes a watch wait when it is ahead of its reader.
type Pace struct {
	// Bytes is how many bytes, of events' values and previous values, are sent before Wait is called.
	Bytes int
	// Wait is called before the event that reaches Bytes is sent. value is that event's value, or the deleted value if
	// it is a deletion. The watch continues when Wait returns, which it must do when ctx is done.
	Wait func(ctx context.Context, value []byte)
}

type paceKey struct{}

// Paced returns a context whose watches obey p.
func Paced(ctx context.Context, p Pace) context.Context {
	return context.WithValue(ctx, paceKey{}, p)
}

// Watch follows a key or range. It returns when the watch has begun or is refused. The channel is closed after a
// response with an error. It is also closed when ctx, the context given to Until, the client or the store ends.
func (n *watcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpWatch(key, opts...)
	stream := streamKey(ctx)
	ctx, cancel := context.WithCancel(ctx)
	stop, stopUntil := context.AfterFunc(n.ctx, cancel), func() bool { return false }
	if end, ok := ctx.Value(untilKey{}).(context.Context); ok {
		stopUntil = context.AfterFunc(end, cancel)
	}
	release := func() {
		stop()
		stopUntil()
		cancel()
	}
	following, created, w := n.startWatch(ctx, op)
	n.mu.Lock()
	defer n.mu.Unlock()
	if w == nil || n.closed {
		if w != nil {
			w.Close()
		}
		release()
		return closedWatch(created)
	}
	if n.streams[stream] == nil {
		n.streams[stream] = make(map[*watch.Watcher]struct{})
	}
	n.streams[stream][w] = struct{}{}
	out := make(chan clientv3.WatchResponse)
	n.tasks.Go(func() {
		defer close(out)
		defer release()
		defer n.remove(stream, w)
		f := &follower{api: n.api, w: w, ctx: ctx, following: following, responses: out}
		f.pace, _ = ctx.Value(paceKey{}).(Pace)
		f.run(op.IsCreatedNotify(), created)
	})
	return out
}

// startWatch starts a watcher. If there is none, the response has the reason, or is nil if ctx has ended. The returned
// context ends with ctx, or when a leader is required and there is none.
func (n *watcher) startWatch(ctx context.Context, op clientv3.Op) (following context.Context, _ *pb.WatchResponse, _ *watch.Watcher) {
	following = ctx
	if requiresLeader(ctx) {
		var release func()
		var err error
		if following, release, err = n.whileLeader(ctx); err != nil {
			return nil, n.refusal(ctx, err), nil
		}
		context.AfterFunc(ctx, release)
	}
	w, created, err := n.api.Watch(following, watchRequest(op))
	if err != nil {
		return nil, n.refusal(ctx, err), nil
	}
	return following, created, w
}

// whileLeader is etcdapi.API's WhileLeader, which waits for a leader before it returns that there is none.
func (n *watcher) whileLeader(ctx context.Context) (_ context.Context, release func(), err error) {
	for {
		following, release, err := n.api.WhileLeader(ctx)
		if err == nil {
			n.mu.Lock()
			n.leaderlessSince = time.Time{}
			n.mu.Unlock()
		}
		if !errors.Is(err, rpctypes.ErrGRPCNoLeader) || !n.awaitLeader(ctx) {
			return following, release, err
		}
	}
}

// awaitLeader waits for a leader and reports whether there is one. It waits at most as long as there has been none, so
// that the pauses between refusals of a watch double.
func (n *watcher) awaitLeader(ctx context.Context) bool {
	n.mu.Lock()
	if n.leaderlessSince.IsZero() {
		n.leaderlessSince = time.Now()
	}
	wait := min(max(time.Since(n.leaderlessSince), firstRefusal), lastRefusal)
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return n.api.AwaitLeader(ctx) == nil
}

func (n *watcher) refusal(ctx context.Context, err error) *pb.WatchResponse {
	if ctx.Err() != nil {
		return nil // the client has stopped listening
	}
	return n.api.EndWatch(err)
}

// closedWatch returns the channel of a watch that did not begin.
func closedWatch(why *pb.WatchResponse) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse, 1)
	if why != nil {
		why.Created = false // as etcd's client does
		out <- toClient(why)
	}
	close(out)
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

// toClient converts a response to that of etcd's client.
func toClient(r *pb.WatchResponse) clientv3.WatchResponse {
	return clientv3.WatchResponse{
		Header: r.Header, Events: r.Events, CompactRevision: r.CompactRevision,
		Created: r.Created, Canceled: r.Canceled, CancelReason: r.CancelReason,
	}
}

// follower sends the events of one watch to its channel.
type follower struct {
	api         *etcdapi.API
	w           *watch.Watcher
	ctx         context.Context
	following   context.Context // ctx, or a context that also ends when there is no leader
	responses   chan<- clientv3.WatchResponse
	pace        Pace // its Wait may be nil
	bytesPassed int  // bytes since Wait was last called
}

func (f *follower) run(notify bool, created *pb.WatchResponse) {
	if notify && !f.send(toClient(created)) {
		return
	}
	for {
		d, err := f.w.Next(f.following)
		if err != nil && etcdapi.LeaderLost(f.following) {
			f.send(toClient(f.api.EndWatch(rpctypes.ErrGRPCNoLeader)))
		}
		if err != nil {
			return
		}
		if d.Compacted > 0 {
			f.send(toClient(f.api.WatchResponse(d)))
			return
		}
		if !f.sendDelivery(d) {
			return
		}
	}
}

// sendDelivery sends a delivery, in several responses if there is a Pace.
func (f *follower) sendDelivery(d watch.Delivery) bool {
	rest := d.Events
	for f.pace.Wait != nil && len(rest) > 0 {
		n := f.waitSendable(rest)
		if n == len(rest) {
			break
		}
		if !f.send(clientv3.WatchResponse{Header: f.api.HeaderAt(rest[n-1].Kv.ModRevision), Events: rest[:n]}) {
			return false
		}
		rest = rest[n:]
	}
	// It does not use WatchResponse and toClient, since the message would cost time for each event of each watch.
	return f.send(clientv3.WatchResponse{Header: f.api.HeaderAt(d.Revision), Events: rest})
}

// waitSendable returns how many of the events may be sent now. If these reach Bytes, it first calls Wait.
func (f *follower) waitSendable(events []*mvccpb.Event) int {
	for i, e := range events {
		f.bytesPassed += len(e.Kv.Value) + len(e.PrevKv.GetValue())
		if f.bytesPassed < f.pace.Bytes {
			continue
		}
		value := e.Kv.Value
		if e.Type == mvccpb.Event_DELETE {
			value = e.PrevKv.GetValue()
		}
		f.pace.Wait(f.following, value)
		f.bytesPassed = 0
		return i + 1
	}
	return len(events)
}

func (f *follower) send(r clientv3.WatchResponse) bool {
	select {
	case f.responses <- r:
		return true
	case <-f.ctx.Done():
		return false
	}
}

func (n *watcher) remove(stream string, w *watch.Watcher) {
	w.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.streams[stream], w)
	if len(n.streams[stream]) == 0 {
		delete(n.streams, stream)
	}
}

// RequestProgress makes every watch with the same metadata as ctx report its revision.
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
