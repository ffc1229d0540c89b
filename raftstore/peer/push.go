// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// replyTimeout is how long entries wait until a server that does not answer is back. Raft's own pause after a
	// failure doubles each time, up to ten seconds. In such a pause a server that is back would get nothing.
	replyTimeout = 30 * time.Second
	// replyPoll is the interval of checks whether that server is back.
	replyPoll = 50 * time.Millisecond
)

// follower is what a leader knows of the log of a peer.
type follower struct {
	header   raft.RPCHeader
	term     uint64 // term of the leader that sends
	inFlight int    // number of messages under way that carry entries or a commit index
	// match is the index of the newest entry that the peer confirmed in term. matchTerm is the term of that entry.
	match, matchTerm uint64
	sent             uint64    // index of the newest entry that was sent to the peer
	stored           time.Time // when it last had all that this leader sent or committed, or confirmed one more entry
	sentCommit       uint64    // the commit index that was sent to the peer last
	commit           uint64    // the newest commit index
	pushing          bool
}

// Committed says that entries up to an index are committed, as the leader of a term knows. Raft sends that to followers
// with the next entries or after its CommitTimeout, and until then their readers and watches would wait. So the commit
// index is sent at once to followers that have the entries and have no message under way.
//
// The message claims no more than raft's own would: that the leader of the term has an entry, which the follower has
// confirmed, and what is committed.
func (t *Transport) Committed(term, index uint64) {
	for _, p := range t.all() {
		p.mu.Lock()
		if p.log.term == term {
			p.log.commit = max(p.log.commit, index)
		}
		p.mu.Unlock()
		t.push(p)
	}
}

// boundCommit bounds the commit index of a message by the last entry that the follower certainly has when it accepts
// the message, as the Raft paper requires. Raft 1.8.0 sends the newest commit index, which may be beyond the entries of
// the message. The follower then commits as far as its own log goes, whether these are the leader's entries or ones
// that a former leader left there.
func boundCommit(r *raft.AppendEntriesRequest) {
	last := r.PrevLogEntry
	if n := len(r.Entries); n > 0 {
		last = r.Entries[n-1].Index
	}
	r.LeaderCommitIndex = min(r.LeaderCommitIndex, last)
}

// sending notes a message that carries entries or a commit index, before it is sent.
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

// outcome notes the outcome of a message that sending noted.
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

// reply notes that the peer replied to a heartbeat of a term. A server with a stalled disk replies too, so a reply
// counts as storing only while the peer lacks no entry.
func (p *peer) reply(term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log.term == term && p.log.match > 0 && p.log.match >= max(p.log.sent, p.log.commit) {
		p.log.stored = time.Now()
	}
}

// Stored returns the index of the newest entry that a server has confirmed to this leader of a term, hence flushed to
// its disk. It also returns when the server last stored: the newest moment at which it confirmed one more entry, or
// replied while it lacked none. Both are zero if it has confirmed nothing in the term. Unlike for [Transport.Contact],
// answers to calls do not count: a process with a stalled disk still answers.
func (ps *peers) Stored(id raft.ServerID, term uint64) (index uint64, at time.Time) {
	p := ps.find(id)
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

// dueCommit returns the message that sends the peer the commit index, and whether it has to be sent.
func (p *peer) dueCommit() (raft.AppendEntriesRequest, bool) {
	l := &p.log
	if l.inFlight > 0 || l.match == 0 || l.commit > l.match || l.sentCommit >= l.commit {
		return raft.AppendEntriesRequest{}, false
	}
	return raft.AppendEntriesRequest{
		RPCHeader: l.header, Term: l.term,
		PrevLogEntry: l.match, PrevLogTerm: l.matchTerm, LeaderCommitIndex: l.commit,
	}, true
}

// push sends a peer the commit index, if the peer lacks it and no other goroutine is sending it.
func (t *Transport) push(p *peer) {
	p.mu.Lock()
	_, due := p.dueCommit()
	if !due || p.log.pushing || p.address == "" {
		p.mu.Unlock()
		return
	}
	p.log.pushing = true
	p.mu.Unlock()
	t.spawn(func() { t.pushAll(p) })
}

func (t *Transport) pushAll(p *peer) {
	for {
		p.mu.Lock()
		request, due := p.dueCommit()
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
		}) // raft handles the error when it sends the next message
	}
}

// awaitReply waits until the peer has answered something since a given time, or until replyTimeout has passed. It
// reports whether the peer has answered.
func (t *Transport) awaitReply(p *peer, since time.Time) bool {
	ctx, cancel := context.WithTimeout(t.ctx, replyTimeout)
	defer cancel()
	ticker := time.NewTicker(replyPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		p.mu.Lock()
		back := p.lastContact.After(since)
		p.mu.Unlock()
		if back {
			return true
		}
	}
}
