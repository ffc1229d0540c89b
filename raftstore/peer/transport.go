// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
)

// maxPool is how many idle connections of one class to one peer are kept. Raft seldom has more than one message of a
// class under way to a peer.
const maxPool = 2

// handlerGrace bounds how long Close waits for raft to finish a message that it is handling: raft may be waiting for a
// disk that never answers.
const handlerGrace = 5 * time.Second

// Transport holds a server's connections to the others. It implements raft.Transport, raft.WithPreVote and
// raft.WithClose.
type Transport struct {
	opts   Options
	began  time.Time
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{} // closed when Close has finished
	tasks  sync.WaitGroup

	beats, votes, entries, snapshots *raft.NetworkTransport
	rpcs                             chan raft.RPC // unbuffered: raft takes messages one by one

	raftConns, callConns *queue
	server               *grpc.Server
	refusals, untrusted  occasionally   // limit log lines about incoming and outgoing connections
	handlers             sync.WaitGroup // incoming raft connections

	leader leader
	moved  moved
	asking atomic.Bool // a goroutine is checking whether the leader has ended

	mu      sync.Mutex
	closed  bool
	conns   map[*conn]struct{}
	peers   map[string]*peer
	callers map[string]*caller   // by address
	left    map[*caller]struct{} // no new call begins on these, but some are under way
	onLost  []func(raft.ServerID)
}

// Closed returns a transport without connections. It makes none, and has heard no server.
func Closed() *Transport { return &Transport{closed: true} }

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
)

// New starts a transport. Close ends it.
func New(o Options) (*Transport, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	t := &Transport{
		opts:      o,
		began:     time.Now(),
		rpcs:      make(chan raft.RPC),
		ended:     make(chan struct{}),
		raftConns: newQueue(o.Address),
		callConns: newQueue(o.Address),
		conns:     map[*conn]struct{}{},
		peers:     map[string]*peer{},
		callers:   map[string]*caller{},
		left:      map[*caller]struct{}{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.beats = t.network(classBeats, o.Timeout, t.raftConns)
	t.votes = t.network(classBeats, t.votesTime(), newQueue(o.Address))
	t.entries = t.network(classEntries, t.entriesTime(), newQueue(o.Address))
	t.snapshots = t.network(classSnapshots, o.Timeout, newQueue(o.Address))
	t.tasks.Go(t.passOn)
	if o.Listener != nil {
		t.serveCalls()
		t.tasks.Go(t.accept)
	}
	return t, nil
}

func (t *Transport) network(c class, timeout time.Duration, incoming *queue) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger:                  hclog.NewNullLogger(), // the errors that it returns say more than its log
		Stream:                  &streams{queue: incoming, t: t, class: c},
		MaxPool:                 maxPool,
		Timeout:                 timeout,
		MsgpackUseNewTimeFormat: true,
	})
}

// entriesTime is the timeout of a message with entries, without the addition for its size. The answer waits for a disk.
func (t *Transport) entriesTime() time.Duration { return max(5*t.opts.Timeout, entriesTimeout) }

// votesTime is the timeout of a vote, the longest of all messages without entries.
func (t *Transport) votesTime() time.Duration { return max(5*t.opts.Timeout, votesTimeout) }

// clock returns a time as nanoseconds since the transport began. It does not change when this machine's clock is set.
func (t *Transport) clock(at time.Time) int64 { return int64(at.Sub(t.began)) }

// Close ends all connections and waits until nothing of the transport runs any more. Calls and messages under way fail.
// Raft calls Close after its own goroutines have ended. These may be waiting for messages, so the store has to call
// Close between raft.Shutdown and the wait for its result.
func (t *Transport) Close() error {
	t.mu.Lock()
	closed, callers := t.closed, slices.AppendSeq(slices.Collect(maps.Values(t.callers)), maps.Keys(t.left))
	t.closed, t.callers, t.left = true, nil, nil
	t.mu.Unlock()
	if closed {
		<-t.ended
		return nil
	}
	defer close(t.ended)
	t.close(callers)
	return nil
}

func (t *Transport) close(callers []*caller) {
	t.cancel()
	if t.opts.Listener != nil {
		if err := t.opts.Listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.opts.Logger.Debug("closing the listener for other servers", "error", err)
		}
	}
	for _, n := range []*raft.NetworkTransport{t.beats, t.votes, t.entries, t.snapshots} {
		_ = n.Close() // never fails
	}
	for _, c := range callers {
		c.close()
	}
	t.abortConns(func(*conn) bool { return true })
	if t.server != nil {
		t.server.Stop() // waits for its handlers
	}
	t.tasks.Wait()

	ended := make(chan struct{})
	go func() {
		t.handlers.Wait()
		close(ended)
	}()
	grace := time.NewTimer(handlerGrace)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
		t.opts.Logger.Warn("raft still handles a message of another server while the transport closes; its disk may be stalled")
	}
}

// purge ends the connections to a target that a network's pool may hold and that were made before a given time: before
// the failure that showed that the peer has ended or restarted.
func (t *Transport) purge(target string, c class, before time.Time) {
	t.abortConns(func(k *conn) bool {
		return k.class == c && k.target == target && k.made.Before(before)
	})
}
