// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// Raft bounds a message by the number of its entries, so it may have far too many or too few bytes. A message that
// exceeds its timeout is sent again as a whole, for ever on a slow link. So a message's size follows what the peer
// answers in time, beginning with firstMessage.
const (
	firstMessage = 64 << 10
	minMessage   = 16 << 10
	maxMessage   = 1 << 20
)

// EntryBytes returns about how many bytes an entry uses in memory.
func EntryBytes(e *raft.Log) int { return 128 + len(e.Data) + len(e.Extensions) }

func entriesBytes(entries []*raft.Log) (bytes int) {
	for _, e := range entries {
		bytes += EntryBytes(e)
	}
	return bytes
}

// fitToSize extends or shortens a message of raft's to the largest size allowed. next is Options.Next. When the message
// is answered, raft continues after its last entry.
func (p *peer) fitToSize(r *raft.AppendEntriesRequest, next func(term, after uint64, bytes int) []*raft.Log) {
	left := p.shorten(r)
	if n := len(r.Entries); n > 0 && next != nil {
		r.Entries = append(r.Entries, next(r.Term, r.Entries[n-1].Index, left)...)
	}
}

// shorten removes the entries that are too much for a message to the peer, but not the first one. It returns how many
// bytes are left.
func (p *peer) shorten(r *raft.AppendEntriesRequest) (left int) {
	p.mu.Lock()
	left = p.maxMessage
	p.mu.Unlock()
	for i, e := range r.Entries {
		if left -= EntryBytes(e); left < 0 && i > 0 {
			clear(r.Entries[i:]) // otherwise they stay in memory until the message is answered
			r.Entries = r.Entries[:i]
			break
		}
	}
	return left
}

// recordSent notes that a message is sent, and by how many bytes it exceeds the size that the peer is known to answer
// in time. A single entry may be that large.
func (p *peer) recordSent(r *raft.AppendEntriesRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excess = max(0, entriesBytes(r.Entries)-p.maxMessage)
}

// Transfer returns how much longer the message with entries that is under way to a server may take than one of a size
// that the server is known to answer in time. It is 0 if there is no such message, or it is not larger.
func (ps *peers) Transfer(id raft.ServerID) time.Duration {
	p := ps.find(id)
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.excess) * time.Second / entriesRate
}

// adjustSize is called with how long a message took. limit is its timeout. The next message may be larger if this one
// was quick and at least half full. It is smaller if this one timed out.
func (p *peer) adjustSize(r *raft.AppendEntriesRequest, took, limit time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excess = 0
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.maxMessage = max(p.maxMessage/2, minMessage)
	case err == nil && took < limit/8 && entriesBytes(r.Entries) > p.maxMessage/2:
		p.maxMessage = min(2*p.maxMessage, maxMessage)
	}
}
