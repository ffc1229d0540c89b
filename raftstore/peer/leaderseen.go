// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leader is the leader of the highest term that this server has heard of.
type leader struct {
	mu      sync.Mutex
	id      raft.ServerID
	address raft.ServerAddress
	term    uint64
	heard   time.Time // when its last message arrived
	gaps    gaps
	changed []func()
}

// LeaderSeen returns the leader of the highest term from which a message arrived, or zero values. It does not matter
// whether raft could handle the message. This server's own leadership does not count.
func (t *Transport) LeaderSeen() (id raft.ServerID, address raft.ServerAddress, term uint64) {
	l := &t.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, l.address, l.term
}

// LeaderContact returns when the last message arrived from the leader that LeaderSeen returns. It is zero if there was
// none.
func (t *Transport) LeaderContact() time.Time {
	l := &t.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

// LeaderGap returns the longest time between two messages of a leader, over the last ten to twenty seconds in which
// messages arrived. A gap of mostGap or more does not count, since no server waits that long for a leader.
func (t *Transport) LeaderGap() time.Duration {
	l := &t.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.gaps.longest[0], l.gaps.longest[1])
}

const (
	mostGap   = time.Second
	gapWindow = 10 * time.Second
)

// gaps has the longest times between two messages of a leader: in the present window (gapWindow) and in the one before.
type gaps struct {
	since   time.Time // when the present window began
	longest [2]time.Duration
}

func (g *gaps) record(now time.Time, gap time.Duration) {
	if now.Sub(g.since) > gapWindow {
		g.since, g.longest = now, [2]time.Duration{0, g.longest[0]}
	}
	if gap < mostGap {
		g.longest[0] = max(g.longest[0], gap)
	}
}

// OnLeader registers f, which is called each time LeaderSeen changes. The goroutine that handles a message calls it, so
// f must not block.
func (t *Transport) OnLeader(f func()) {
	l := &t.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = append(l.changed, f)
}

// saw notes what a message says of the leader and of addresses, before raft handles it.
func (t *Transport) saw(rpc raft.RPC) {
	var head raft.RPCHeader
	var term uint64
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		head, term = m.RPCHeader, m.Term
	case *raft.InstallSnapshotRequest:
		head, term = m.RPCHeader, m.Term
	case *raft.RequestVoteRequest:
		t.moved.met(string(m.ID), string(m.Addr))
		return
	case *raft.RequestPreVoteRequest:
		t.moved.met(string(m.ID), string(m.Addr))
		return
	case *raft.TimeoutNowRequest:
		if t.opts.OnTransfer != nil {
			t.opts.OnTransfer()
		}
		return
	default:
		return
	}
	l := &t.leader
	l.mu.Lock()
	if now := time.Now(); term >= l.term {
		if term == l.term {
			l.gaps.record(now, now.Sub(l.heard))
		}
		l.heard = now
	}
	if term < l.term || term == l.term && string(l.id) == string(head.ID) && string(l.address) == string(head.Addr) {
		l.mu.Unlock()
		return
	}
	l.id, l.address, l.term = raft.ServerID(head.ID), raft.ServerAddress(head.Addr), term
	changed := l.changed
	l.mu.Unlock()
	for _, f := range changed {
		f()
	}
}
