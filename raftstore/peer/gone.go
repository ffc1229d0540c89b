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
	// lostDial bounds a call by which a server is found to be dead.
	lostDial = 100 * time.Millisecond
	// lostDials is how often to call. A process that dies loses its
	// connections one by one: its listener may outlive those that broke for a
	// few milliseconds. The pause between the calls doubles, from lostFirst.
	lostDials = 6
	lostFirst = 4 * time.Millisecond
)

// OnGone has f called when a server has certainly ended: a connection on which
// it sent raft's messages broke, and its address refuses another. That happens
// at once when its process dies, however it does; a machine without power or
// behind a cut cable is not noticed here. f must not block.
func (t *Transport) OnGone(f func(raft.ServerID)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onLost = append(t.onLost, f)
}

// broke takes note of the end of an incoming connection.
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

// Stand makes this server stand for election now, as if it had been handed the
// leadership. It reports whether raft took notice.
func (t *Transport) Stand(ctx context.Context) bool {
	answer := make(chan raft.RPCResponse, 1) // raft does not wait
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
