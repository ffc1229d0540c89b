// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
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
	*connections
	*calls
	*leaderObserver

	beats, votes, entries, snapshots *raft.NetworkTransport
	rpcs                             chan raft.RPC // unbuffered: raft takes messages one by one
	finished                         chan struct{} // closed when Close has finished
}

// Closed returns a transport without connections. It makes none, and has heard no server.
func Closed() *Transport { return newTransport(Options{}) }

// newTransport returns a transport that makes no calls yet.
func newTransport(o Options) *Transport {
	cs := newConnections(o)
	return &Transport{connections: cs, calls: &calls{connections: cs}, leaderObserver: &leaderObserver{connections: cs}}
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
	t := newTransport(o)
	t.rpcs, t.finished = make(chan raft.RPC), make(chan struct{})
	t.callers, t.leaving = map[string]*caller{}, map[*caller]struct{}{}
	t.incomingEnded = t.connectionEnded
	t.beats = t.network(classBeats, o.Timeout, t.raftConns)
	t.votes = t.network(classBeats, t.votesTime(), newQueue(o.Address))
	t.entries = t.network(classEntries, t.entriesTime(), newQueue(o.Address))
	t.snapshots = t.network(classSnapshots, o.Timeout, newQueue(o.Address))
	t.tasks.Go(t.forwardToRaft)
	if o.Listener != nil {
		t.serveCalls()
		t.tasks.Go(t.accept)
	}
	return t, nil
}

func (t *Transport) network(c class, timeout time.Duration, incoming *queue) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger:                  hclog.NewNullLogger(), // the errors that it returns say more than its log
		Stream:                  &streams{queue: incoming, conns: t.connections, class: c},
		MaxPool:                 maxPool,
		Timeout:                 timeout,
		MsgpackUseNewTimeFormat: true,
	})
}

// entriesTime is the timeout of a message with entries, without the addition for its size. The answer waits for a disk.
func (t *Transport) entriesTime() time.Duration { return max(5*t.opts.Timeout, entriesTimeout) }

// votesTime is the timeout of a vote, the longest of all messages without entries.
func (t *Transport) votesTime() time.Duration { return max(5*t.opts.Timeout, votesTimeout) }

// Close ends all connections and waits until nothing of the transport runs any more. Calls and messages under way fail.
// Raft calls Close after its own goroutines have ended. These may be waiting for messages, so the store has to call
// Close between raft.Shutdown and the wait for its result.
func (t *Transport) Close() error {
	t.connections.mu.Lock()
	closed := t.closed
	t.closed = true
	t.connections.mu.Unlock()
	if !closed {
		t.close()
		close(t.finished)
	}
	<-t.finished
	return nil
}

func (t *Transport) close() {
	t.cancel()
	if t.opts.Listener != nil {
		if err := t.opts.Listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.opts.Logger.Debug("closing the listener for other servers", "error", err)
		}
	}
	for _, n := range []*raft.NetworkTransport{t.beats, t.votes, t.entries, t.snapshots} {
		_ = n.Close() // never fails
	}
	t.calls.close()
	t.abortConns(func(*conn) bool { return true })
	if t.server != nil {
		t.server.Stop() // waits for its handlers
	}
	t.tasks.Wait()

	handled := make(chan struct{})
	go func() {
		t.handlers.Wait()
		close(handled)
	}()
	grace := time.NewTimer(handlerGrace)
	defer grace.Stop()
	select {
	case <-handled:
	case <-grace.C:
		t.opts.Logger.Warn("raft still handles a message of another server while the transport closes; its disk may be stalled")
	}
}
