// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// peer is what the transport knows of another server.
type peer struct {
	id             string
	sent, received atomic.Uint64
	rtts           *metrics.Histogram // round-trip times of heartbeats
	offset         atomic.Pointer[Offset]

	mu              sync.Mutex
	address         string
	failures        uint64
	inARow          uint64
	lastContact     time.Time
	unansweredSince time.Time // when the first of the unanswered heartbeats began
	log             follower
	maxMessage      int // most bytes of a message's entries, unless there is only one
	excess          int // by how many bytes the message under way exceeds that
}

// PeerStats is what the transport knows of another server.
type PeerStats struct {
	ID      raft.ServerID      // "" for all callers without an identity
	Address raft.ServerAddress // last used to connect to it, or ""

	BytesSent     uint64 // over connections of both directions
	BytesReceived uint64

	Failures    uint64 // of messages and calls to it
	LastContact time.Time
	RTT         *metrics.Histogram // round-trip times of heartbeats
}

// peers has what is known of each of the other servers.
type peers struct {
	mu   sync.Mutex
	byID map[string]*peer
}

// Peers returns the statistics of the other servers, in the order of their ids.
func (ps *peers) Peers() []PeerStats {
	stats := convert.Slice(ps.all(), (*peer).stats)
	slices.SortFunc(stats, func(a, b PeerStats) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return stats
}

// Retain drops the statistics of all servers but the given ones, so that those of replaced servers do not accumulate.
func (ps *peers) Retain(ids []raft.ServerID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for id := range ps.byID {
		if !slices.Contains(ids, raft.ServerID(id)) {
			delete(ps.byID, id)
		}
	}
}

// Contact returns when the server last answered anything, or the zero time. That proves that its process works, but not
// its disk: see [Transport.Stored].
func (ps *peers) Contact(id raft.ServerID) time.Time {
	p := ps.find(id)
	if p == nil {
		return time.Time{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastContact
}

// find returns what is known of a server, nil if there was no contact yet.
func (ps *peers) find(id raft.ServerID) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byID[string(id)]
}

func (ps *peers) all() []*peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.Collect(maps.Values(ps.byID))
}

func (ps *peers) peer(id string) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byID[id]
	if p == nil {
		p = &peer{id: id, rtts: metrics.NewPeerHistogram(), maxMessage: firstMessage}
		ps.byID[id] = p
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
		LastContact:   p.lastContact,
		RTT:           p.rtts,
	}
}

// noteReply notes that the server answered.
func (p *peer) noteReply(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastContact, p.inARow = time.Now(), 0
	if address != "" {
		p.address = address
	}
}

// recordMiss notes that a heartbeat, a pre-vote or a vote was not answered in time.
func (p *peer) recordMiss(began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unansweredSince.IsZero() {
		p.unansweredSince = began
	}
}

// recovered returns since when heartbeats were unanswered, and forgets it. It returns the zero time if all were
// answered.
func (p *peer) recovered() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := p.unansweredSince
	p.unansweredSince = time.Time{}
	return since
}

// recordFailure notes a failure and returns whether it is the first in a row.
func (p *peer) recordFailure(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.address = address
	p.failures++
	p.inARow++
	return p.inARow == 1
}
