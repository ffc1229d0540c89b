// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"sync"

	"github.com/hashicorp/raft"
)

// Mark returns a number greater than that of every AppendEntries whose sending
// began before the call, and not greater than that of any which begins after
// it returned. See Answered.
func (t *Transport) Mark() uint64 { return t.sends.Load() + 1 }

// Answered returns the highest number of an AppendEntries of that term which the
// server accepted in that term, or 0. If it is at least a Mark, the server's term
// was this one at some time after the mark.
func (t *Transport) Answered(id raft.ServerID, term uint64) uint64 {
	t.mu.Lock()
	p := t.peers[string(id)]
	t.mu.Unlock()
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != term {
		return 0
	}
	return p.answered
}

// accepted notes an accepted AppendEntries.
func (p *peer) accepted(term, number uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term > p.term {
		p.term, p.answered = term, 0
	}
	if term == p.term {
		p.answered = max(p.answered, number)
	}
}

// leader is the leader of the highest term that was heard of.
type leader struct {
	mu      sync.Mutex
	id      raft.ServerID
	address raft.ServerAddress
	term    uint64
	changed []func()
}

// LeaderSeen returns the leader of the highest term from which a message came,
// whether or not raft could handle it, or zero values. This server's own
// leadership is not in it.
func (t *Transport) LeaderSeen() (id raft.ServerID, address raft.ServerAddress, term uint64) {
	l := &t.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, l.address, l.term
}

// OnLeader has f called each time LeaderSeen changes, from a goroutine that
// handles a message: f must not block.
func (t *Transport) OnLeader(f func()) {
	l := &t.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = append(l.changed, f)
}

// saw looks at a message before raft does.
func (t *Transport) saw(rpc raft.RPC) {
	var head raft.RPCHeader
	var term uint64
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		head, term = m.RPCHeader, m.Term
	case *raft.InstallSnapshotRequest:
		head, term = m.RPCHeader, m.Term
	default:
		return
	}
	l := &t.leader
	l.mu.Lock()
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
