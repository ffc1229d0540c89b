// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// Raft bounds a message by the number of its entries: by bytes it may be far too large or too small. One that takes
// longer than it may is sent again from the beginning, over a narrow link for ever. So a message's size follows what
// the peer answers in good time, beginning with firstMessage.
const (
	firstMessage = 64 << 10
	leastMessage = 16 << 10
	mostMessage  = 1 << 20
)

// EntryBytes is what an entry takes in memory, about.
func EntryBytes(e *raft.Log) int { return 128 + len(e.Data) + len(e.Extensions) }

func entriesBytes(entries []*raft.Log) (bytes int) {
	for _, e := range entries {
		bytes += EntryBytes(e)
	}
	return bytes
}

// fill makes a message of raft's as large as it may be. Raft goes on behind the last entry that the message has when it
// is answered.
func (t *Transport) fill(p *peer, r *raft.AppendEntriesRequest) {
	room := p.cut(r)
	if n := len(r.Entries); n > 0 && t.opts.Next != nil {
		r.Entries = append(r.Entries, t.opts.Next(r.Term, r.Entries[n-1].Index, room)...)
	}
}

// cut takes away what is too much for a message to the peer, but the first entry, and returns how many bytes are left.
func (p *peer) cut(r *raft.AppendEntriesRequest) (room int) {
	p.mu.Lock()
	room = p.message
	p.mu.Unlock()
	for i, e := range r.Entries {
		if room -= EntryBytes(e); room < 0 && i > 0 {
			clear(r.Entries[i:]) // they need not be kept for as long as the message takes
			r.Entries = r.Entries[:i]
			break
		}
	}
	return room
}

// sends notes that a message sets out, and how many bytes it has more than the peer is known to answer in good time: a
// single entry may be that large.
func (p *peer) sends(r *raft.AppendEntriesRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excess = max(0, entriesBytes(r.Entries)-p.message)
}

// Transfer returns how much longer the message with entries that is under way to a server may take than one of a size
// that it is known to answer in good time. 0 if there is none, or it is not larger.
func (t *Transport) Transfer(id raft.ServerID) time.Duration {
	p := t.known(id)
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.excess) * time.Second / entriesRate
}

// paced notes how long a message took, of at most limit. The next one may be larger if this one was full, and quick; it
// is smaller if this one was too late.
func (p *peer) paced(r *raft.AppendEntriesRequest, took, limit time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excess = 0
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.message = max(p.message/2, leastMessage)
	case err == nil && took < limit/8 && entriesBytes(r.Entries) > p.message/2:
		p.message = min(2*p.message, mostMessage)
	}
}
