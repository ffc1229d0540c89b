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

// maxPool is how many idle connections of one class to one peer are kept. Raft
// seldom has more than one message of a class under way to a peer.
const maxPool = 2

// handlerGrace bounds how long Close waits for raft to come back from a
// heartbeat it is handling: it may be waiting for a disk that never answers.
const handlerGrace = 5 * time.Second

// Transport is a server's connections to the others. It implements
// raft.Transport, raft.WithPreVote and raft.WithClose.
type Transport struct {
	opts   Options
	began  time.Time
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{} // closed when Close is through
	tasks  sync.WaitGroup

	beats, votes, entries, snapshots *raft.NetworkTransport
	rpcs                             chan raft.RPC // unbuffered: raft takes them one by one

	raftConns, callConns *queue
	server               *grpc.Server
	refusals, untrusted  occasionally   // log lines: of incoming connections, of outgoing ones
	handlers             sync.WaitGroup // incoming raft connections

	leader leader
	moved  moved
	asking atomic.Bool // whether the leader has ended

	mu      sync.Mutex
	closed  bool
	conns   map[*conn]struct{}
	peers   map[string]*peer
	callers map[string]*caller   // by address
	left    map[*caller]struct{} // that calls are under way on, but none begins
	onLost  []func(raft.ServerID)
}

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
		Logger:                  hclog.NewNullLogger(), // what it says is said better by the errors it returns
		Stream:                  &streams{queue: incoming, t: t, class: c},
		MaxPool:                 maxPool,
		Timeout:                 timeout,
		MsgpackUseNewTimeFormat: true,
	})
}

// entriesTime is how long entries may take: they wait for a disk.
func (t *Transport) entriesTime() time.Duration { return max(5*t.opts.Timeout, entriesTimeout) }

// votesTime is how long a vote may take, the longest of all messages.
func (t *Transport) votesTime() time.Duration { return max(5*t.opts.Timeout, votesTimeout) }

// clock is a moment as a number, of nanoseconds since the transport began: setting this machine's clock does not
// change it.
func (t *Transport) clock(at time.Time) int64 { return int64(at.Sub(t.began)) }

// Close ends all connections and waits until nothing of the transport runs any
// more. Calls and messages under way fail. Raft calls it after its own goroutines
// ended, which may be waiting for messages: so call it yourself between
// raft.Shutdown and waiting for that.
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

// purge drops what a network's pool may hold for a target and what is older
// than the failure that showed the peer to be gone or restarted.
func (t *Transport) purge(target string, c class, before time.Time) {
	t.abortConns(func(k *conn) bool {
		return k.class == c && k.target == target && k.made.Before(before)
	})
}
