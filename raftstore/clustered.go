// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/election"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// peers is this server's replica and its connections to the other servers. Each part of clustered holds it.
type peers struct {
	*replica
	*peer.Transport               // nil until openPeers has opened it
	started         chan struct{} // closed when raft can be used
}

// hasStarted says whether raft can be used.
func (p *peers) hasStarted() bool {
	select {
	case <-p.started:
		return true
	default:
		return false
	}
}

// clustered is the part of a store that exists only where the cluster has other servers. It makes this server a member,
// sends its clients' writes to the leader and asks the leader for read indexes. While this server leads, it answers the
// others and assigns the votes. The work is done by its parts. No part holds another part.
type clustered struct {
	peers      *peers
	leadership *leadership
	logs       raft.LogStore          // the log as raft has it
	calls      map[string]callHandler // the calls that are answered by parts outside of clustered
	forwarder  *forwarder
	reads      *reads
	elections  *elections
	steward    *steward
	membership *membership
}

// openPeers opens the transport. Calls of other servers wait until run.
func (s *Store) openPeers() (*clustered, error) {
	r := s.replica
	others, logs := &peers{replica: r, started: make(chan struct{})}, r.dir.CachedLog(cachedBytes)
	p := &clustered{
		peers: others, leadership: s.leadership, logs: logs,
		forwarder: &forwarder{
			peers: others, leader: s.leader, quota: s.quota, writer: s.writer, opening: make(chan struct{}, 1),
		},
		reads:      &reads{peers: others, leadership: s.leadership, leader: s.leader, logs: logs},
		elections:  &elections{raftTimeouts: &raftTimeouts{peers: others}, leader: s.leader, leaderMissed: timers.NewSignal()},
		steward:    &steward{peers: others, quota: s.quota, votes: make(chan struct{}, 1)},
		membership: &membership{peers: others, leadership: s.leadership, leader: s.leader, quota: s.quota},
	}
	p.elections.flushes.Store(&election.FlushTimes{})
	judge := &clockJudge{peers: others, leadership: s.leadership}
	var err error
	if p.membership.formerMembers, err = disk.ReadPeers(r.opts.Dir); err != nil {
		r.log.Warn("the saved addresses of the other servers cannot be used", "err", err)
	}
	others.Transport, err = peer.New(peer.Options{
		Cluster: r.dir.Identity.Cluster, ID: string(r.id), Address: string(r.address), Newest: r.opts.newest, Level: r.connectLevel,
		Listener: r.opts.Network.Listener, Dial: r.dial, Logger: r.log,
		Withhold:   p.elections.withholds,
		Follows:    p.follows,
		OnTransfer: p.elections.recordTransfer,
		Next:       p.entriesBehind,
		Snapshot:   r.dir.Log.Snapshot, Install: s.snapshotter.install,
		Handle:  p.handle,
		Timeout: 5 * r.opts.ElectionTimeout,

		Answered: s.leader.noteAnswered, Unanswered: p.elections.verifyLeader,
		Wall: r.opts.Wall, Compared: judge.onCompared,
	})
	if err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	p.forwarder.batches = newProposer(callsInFlight, r.level, p.forwarder.forward)
	others.OnLeader(s.leader.leaderHeard.Send)
	others.OnLeaderEnd(func(id raft.ServerID) {
		if others.hasStarted() {
			p.elections.leaderGone(id)
		}
	})
	return p, nil
}

// replication returns what the parts do for a store.
func (p *clustered) replication() replication {
	type requests struct {
		*forwarder
		*reads
	}
	return replication{requests{p.forwarder, p.reads}, p.peers, p.steward, p.membership, p.elections, p}
}

// run starts the goroutines that run until the store closes. It is called once raft runs.
func (p *clustered) run() {
	ctx, spawn := p.peers.ctx, p.peers.spawn
	spawn(func() { p.membership.keepAnnounced(ctx) })
	spawn(func() { p.membership.savePeersOnChange(ctx) })
	spawn(func() { p.elections.monitorLeader(ctx) })
	close(p.peers.started)
}

// close closes the connections and stops the batches that wait for answers over them.
func (p *clustered) close() {
	_ = p.peers.Close() // never fails
	p.forwarder.batches.stop()
}

// published sends the commit index to the other servers, if this one leads.
func (p *clustered) published() {
	p.forwarder.leader.noteApplied(p.peers.fsm.view().Applied())
	if term, index, ok := committedIndex(p.leadership, p.peers.replica); ok {
		p.peers.Committed(term, index)
	}
}

// levelRaised ends the connections on which a server with an older program may be.
func (p *clustered) levelRaised() { p.peers.EndOlder() }

// handle answers another server's call, once this server's raft can be used.
func (p *clustered) handle(ctx context.Context, from, method string, body []byte) ([]byte, error) {
	select {
	case <-p.peers.started:
		return p.serveCall(ctx, from, method, body)
	case <-ctx.Done():
		return nil, contextError(ctx)
	case <-p.peers.ctx.Done():
		return nil, ErrClosed
	}
}

// follows says whether raft follows a leader in a term. The term is read last: the result is for the moment of that
// read, which is after the leader asked.
func (p *clustered) follows(leader raft.ServerID, term uint64) bool {
	if !p.peers.hasStarted() || p.peers.diskStalled() {
		return false
	}
	_, now := p.peers.raft.LeaderWithID()
	return now == leader && p.peers.raft.State() == raft.Follower && p.peers.raft.CurrentTerm() == term
}

// entriesBehind returns the log entries after an index, up to a sum of bytes. It returns none if this server is no
// longer in the given term of its leadership.
func (p *clustered) entriesBehind(term, after uint64, bytes int) []*raft.Log {
	if !p.peers.hasStarted() {
		return nil
	}
	var out []*raft.Log
	for newest := p.peers.raft.LastIndex(); after < newest && bytes > 0; after++ {
		e := new(raft.Log)
		if p.logs.GetLog(after+1, e) != nil {
			break // raft handles the error when it reads the entry
		}
		if snapshot, _ := p.peers.dir.Log.Snapshot(); e.Type == raft.LogNoop && after+1 <= snapshot {
			break // the log may know only the term of a snapshot's last entry, and then returns it as a no-op
		}
		if bytes -= peer.EntryBytes(e); bytes >= 0 {
			out = append(out, e)
		}
	}
	// A leader does not change its entries. A later leader may, but this server is in the later term before that
	// happens.
	if p.peers.raft.CurrentTerm() != term {
		return nil
	}
	return out
}
