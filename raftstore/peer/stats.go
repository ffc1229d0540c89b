// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// peer is what is known of another server.
type peer struct {
	id             string
	sent, received atomic.Uint64
	rtts           *metrics.Histogram // of heartbeats

	mu       sync.Mutex
	address  string
	failures uint64
	inARow   uint64
	contact  time.Time
	silent   time.Time // when the first of the heartbeats began that were not answered in time
	log      follower
	message  int // bytes that the entries of a message take at most, or it has a single one
	excess   int // bytes that the message under way has more than that
}

// PeerStats is what is known of another server.
type PeerStats struct {
	ID      raft.ServerID      // "" gathers callers without an identity
	Address raft.ServerAddress // last used to reach it, or ""

	BytesSent     uint64 // both directions' connections together
	BytesReceived uint64

	Failures    uint64 // of messages and calls to it
	LastContact time.Time
	RTT         *metrics.Histogram // of heartbeats
}

// Peers returns what is known of each other server, in the order of their ids.
func (t *Transport) Peers() []PeerStats {
	t.mu.Lock()
	peers := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		peers = append(peers, p)
	}
	t.mu.Unlock()
	stats := make([]PeerStats, 0, len(peers))
	for _, p := range peers {
		stats = append(stats, p.stats())
	}
	slices.SortFunc(stats, func(a, b PeerStats) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return stats
}

// Retain forgets the statistics of servers that are not among those given, so
// that replaced servers do not gather.
func (t *Transport) Retain(ids []raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.peers {
		if !slices.Contains(ids, raft.ServerID(id)) {
			delete(t.peers, id)
		}
	}
}

// Contact returns when the server last answered anything, or the zero time. It proves a process, and no disk: see
// [Transport.Stored].
func (t *Transport) Contact(id raft.ServerID) time.Time {
	p := t.known(id)
	if p == nil {
		return time.Time{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.contact
}

// known is nil for a server with which there was nothing yet.
func (t *Transport) known(id raft.ServerID) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[string(id)]
}

func (t *Transport) peer(id string) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil {
		p = &peer{id: id, rtts: metrics.NewPeerHistogram(), message: firstMessage}
		t.peers[id] = p
	}
	return p
}

func (p *peer) stats() PeerStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PeerStats{
		ID:            raft.ServerID(p.id),
		Address:       raft.ServerAddress(p.address),
		BytesSent:     p.sent.Load(),
		BytesReceived: p.received.Load(),
		Failures:      p.failures,
		LastContact:   p.contact,
		RTT:           p.rtts,
	}
}

// noteReply notes that the server answered.
func (p *peer) noteReply(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.contact, p.inARow = time.Now(), 0
	if address != "" {
		p.address = address
	}
}

// miss notes that a heartbeat or vote was not answered in time.
func (p *peer) miss(began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent.IsZero() {
		p.silent = began
	}
}

// recovered returns since when heartbeats had gone unanswered, once, or the zero time.
func (p *peer) recovered() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := p.silent
	p.silent = time.Time{}
	return since
}

// fail notes a failure and returns whether it is the first in a row.
func (p *peer) fail(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.address = address
	p.failures++
	p.inARow++
	return p.inARow == 1
}
