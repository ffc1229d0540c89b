// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// patience is how long entries for a server that does not answer wait for
	// it to come back. Raft's own pause after a failure doubles each time, up to
	// ten seconds, during which a server that is back gets nothing.
	patience = 30 * time.Second
	// patienceTick is how often to look.
	patienceTick = 50 * time.Millisecond
)

// follower is what a leader knows of a peer's log.
type follower struct {
	header   raft.RPCHeader
	term     uint64 // of the leader that sends
	inFlight int    // messages that carry the log
	// match is the newest entry that the peer is known to have in term, and
	// matchTerm the term in which that was made.
	match, matchTerm uint64
	sent             uint64    // the newest entry that a message to it had
	stored           time.Time // when it last had all that this leader sent or committed, or confirmed one more entry
	sentCommit       uint64    // the commit index that the peer was sent last
	commit           uint64    // the newest one
	pushing          bool
}

// Committed says that entries up to an index are committed, as the leader of a
// term knows. Raft tells followers with the next entries, or after its
// CommitTimeout; until then their readers and watches would wait. So those who
// have the entries, and are not about to get more, are sent it at once.
//
// The message claims no more than raft's own would: that the leader of the term
// has an entry, which the follower confirmed to have, and what is committed.
func (t *Transport) Committed(term, index uint64) {
	t.mu.Lock()
	peers := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		peers = append(peers, p)
	}
	t.mu.Unlock()
	for _, p := range peers {
		p.mu.Lock()
		if p.log.term == term {
			p.log.commit = max(p.log.commit, index)
		}
		p.mu.Unlock()
		t.push(p)
	}
}

// proven bounds the commit index of a message by the last entry that the
// follower has for certain when it accepts it, as Raft wants it. Raft 1.8.0
// takes whatever is committed by then, which may be more than the message has
// entries for; and the follower commits as far as its own log goes, be that the
// leader's entries or what a former leader left it.
func proven(r *raft.AppendEntriesRequest) {
	last := r.PrevLogEntry
	if n := len(r.Entries); n > 0 {
		last = r.Entries[n-1].Index
	}
	r.LeaderCommitIndex = min(r.LeaderCommitIndex, last)
}

// sending notes a message that carries the log, or nothing but the commit index.
func (p *peer) sending(r *raft.AppendEntriesRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Term > p.log.term {
		p.log = follower{term: r.Term, inFlight: p.log.inFlight, pushing: p.log.pushing}
	}
	if r.Term == p.log.term {
		p.log.header = r.RPCHeader
		p.log.sentCommit = max(p.log.sentCommit, r.LeaderCommitIndex)
		if n := len(r.Entries); n > 0 {
			p.log.sent = max(p.log.sent, r.Entries[n-1].Index)
		}
	}
	p.log.inFlight++
}

// outcome notes the outcome of what was sending.
func (p *peer) outcome(r *raft.AppendEntriesRequest, accepted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.inFlight--
	if !accepted || r.Term != p.log.term {
		return
	}
	index, term := r.PrevLogEntry, r.PrevLogTerm
	if n := len(r.Entries); n > 0 {
		index, term = r.Entries[n-1].Index, r.Entries[n-1].Term
	}
	if index > p.log.match {
		p.log.match, p.log.matchTerm, p.log.stored = index, term, time.Now()
	}
}

// reply notes that the peer replied to a heartbeat of a term. A server whose disk stalls does that too, so it only
// counts as storing while it lacks nothing.
func (p *peer) reply(term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log.term == term && p.log.match > 0 && p.log.match >= max(p.log.sent, p.log.commit) {
		p.log.stored = time.Now()
	}
}

// Stored returns the newest entry that a server has confirmed to this leader of a term, hence flushed to its disk, and
// when it was last stored: the newest moment at which the server confirmed one more entry, or replied while it lacked
// none. Both are zero if it has confirmed nothing in the term. What it replies to calls does not count, unlike for
// [Transport.Contact]: a process replies whose disk stalls.
func (t *Transport) Stored(id raft.ServerID, term uint64) (index uint64, at time.Time) {
	p := t.known(id)
	if p == nil {
		return 0, time.Time{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log.term != term {
		return 0, time.Time{}
	}
	return p.log.match, p.log.stored
}

// due returns the message that tells the peer what is committed, if it has to
// be sent.
func (p *peer) due() (raft.AppendEntriesRequest, bool) {
	l := &p.log
	if l.inFlight > 0 || l.match == 0 || l.commit > l.match || l.sentCommit >= l.commit {
		return raft.AppendEntriesRequest{}, false
	}
	return raft.AppendEntriesRequest{
		RPCHeader: l.header, Term: l.term,
		PrevLogEntry: l.match, PrevLogTerm: l.matchTerm, LeaderCommitIndex: l.commit,
	}, true
}

// push sends a peer the commit index, if it lacks it and no other goroutine sends it.
func (t *Transport) push(p *peer) {
	p.mu.Lock()
	_, due := p.due()
	if !due || p.log.pushing || p.address == "" {
		p.mu.Unlock()
		return
	}
	p.log.pushing = true
	p.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.tasks.Go(func() { t.pushAll(p) })
	}
}

func (t *Transport) pushAll(p *peer) {
	for {
		p.mu.Lock()
		request, due := p.due()
		if !due {
			p.log.pushing = false
			p.mu.Unlock()
			return
		}
		p.log.sentCommit = request.LeaderCommitIndex
		id, address := raft.ServerID(p.id), raft.ServerAddress(p.address)
		p.mu.Unlock()
		if t.withheld() != nil {
			continue // sent later, with the next entries
		}
		var answer raft.AppendEntriesResponse
		_ = t.send(id, address, classEntries, func(to raft.ServerAddress) error {
			return t.entries.AppendEntries(id, to, &request, &answer)
		}) // raft finds out for itself
	}
}

// await waits until the peer has answered something since a moment, or patience
// ends. It reports whether it has.
func (t *Transport) await(p *peer, since time.Time) bool {
	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()
	ticker := time.NewTicker(patienceTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		p.mu.Lock()
		back := p.contact.After(since)
		p.mu.Unlock()
		if back {
			return true
		}
	}
}
