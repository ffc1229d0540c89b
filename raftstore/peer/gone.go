// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// lostDial bounds one attempt to connect to a leader whose process may have ended.
	lostDial = 100 * time.Millisecond
	// lostDials is how many attempts are made. A process that exits loses its connections one by one, so its listener
	// may remain for a few milliseconds after the first of them broke. The pause between attempts doubles, beginning
	// with lostFirst.
	lostDials = 6
	lostFirst = 4 * time.Millisecond
)

// OnGone registers f, which is called when the leader's process has ended: a connection on which it sent raft's
// messages broke, and its address refuses new ones. That is noticed at once when the process exits, for whatever
// reason. A machine without power or behind a cut cable is not noticed here. f must not block.
func (t *Transport) OnGone(f func(raft.ServerID)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onLost = append(t.onLost, f)
}

// broke is called when an incoming connection has ended with err. If it was the leader's, broke checks whether the
// leader's process has ended.
func (t *Transport) broke(p *peer, err error) {
	l := &t.leader
	l.mu.Lock()
	leads, address := string(l.id) == p.id, l.address
	l.mu.Unlock()
	if !leads || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.onLost) == 0 || !t.asking.CompareAndSwap(false, true) {
		return
	}
	t.tasks.Go(func() {
		defer t.asking.Store(false)
		if !t.refuses(string(address)) {
			return
		}
		t.mu.Lock()
		callbacks := t.onLost
		t.mu.Unlock()
		for _, f := range callbacks {
			f(raft.ServerID(p.id))
		}
	})
}

// refuses says whether no process listens at an address any more.
func (t *Transport) refuses(address string) bool {
	pause := lostFirst
	for range lostDials {
		ctx, cancel := context.WithTimeout(t.ctx, lostDial)
		c, err := t.opts.Dial(ctx, address)
		cancel()
		if errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		if err == nil {
			closeConn(c)
		}
		if !timers.Sleep(t.ctx, pause) {
			return false
		}
		pause *= 2
	}
	return false
}

// StartElection makes this server a candidate now, as a leadership transfer to it would. It reports whether raft took
// the message.
func (t *Transport) StartElection(ctx context.Context) bool {
	answer := make(chan raft.RPCResponse, 1) // capacity 1, since raft does not wait for a reader
	rpc := raft.RPC{RespChan: answer, Command: &raft.TimeoutNowRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(t.opts.Address)},
	}}
	select {
	case t.rpcs <- rpc:
		return true
	case <-ctx.Done():
	case <-t.ctx.Done():
	}
	return false
}
