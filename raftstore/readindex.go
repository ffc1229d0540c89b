// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Linearizable returns a view that holds every write that was acknowledged before the call, by any server.
func (s *Store) Linearizable(ctx context.Context) (*mvcc.View, error) {
	return s.replication.linearizable(ctx)
}

// linearizable gets a read index, which many reads share, and waits until this server has applied that index.
func (r *reads) linearizable(ctx context.Context) (*mvcc.View, error) {
	index, err := r.index(ctx)
	if err != nil {
		return nil, err
	}
	if view := r.fsm.view(); view.Applied() >= index {
		return view, nil
	}
	ctx, cancel := etcdapi.WithTimeout(ctx, r.opts.RequestTimeout)
	defer cancel()
	return r.leader.awaitApplied(ctx, r.fsm, index)
}

// reads finds read indexes. One round is under way at a time. Reads that begin during a round share the next one, which
// begins after all of them.
type reads struct {
	*peers
	leadership *leadership
	leader     *leaderBoard
	logs       raft.LogStore // the log as raft has it
	rounds     atomic.Uint64 // for metrics

	mu        sync.Mutex
	nextRound *readRound
	running   bool
}

type readRound struct {
	done  chan struct{}
	index uint64
	err   error
}

func (r *reads) index(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	if r.nextRound == nil {
		r.nextRound = &readRound{done: make(chan struct{})}
	}
	round := r.nextRound
	if !r.running {
		r.running = r.spawn(r.run)
	}
	going := r.running
	r.mu.Unlock()
	if !going {
		return 0, ErrClosed
	}
	select {
	case <-round.done:
		return round.index, round.err
	case <-ctx.Done():
		return 0, contextError(ctx)
	}
}

// run runs rounds for as long as a caller waits.
func (r *reads) run() {
	for {
		r.mu.Lock()
		round := r.nextRound
		r.nextRound = nil
		if round == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		round.index, round.err = r.find()
		close(round.done)
	}
}

// find gets a read index from the leader.
func (r *reads) find() (index uint64, err error) {
	ctx, cancel := etcdapi.WithTimeout(r.ctx, r.opts.RequestTimeout)
	defer cancel()
	r.rounds.Add(1)
	began := time.Now()
	defer func() { r.opts.Counters.ReadIndexDone(time.Since(began), err) }()
	for {
		lead, moved, err := r.leader.await(ctx)
		if err != nil {
			return 0, err
		}
		index, err := r.leaderReadIndex(ctx, lead, moved)
		if err == nil || !r.worthRetry(ctx, err) {
			return index, proposeErrorOrNil(ctx, err)
		}
		pauseRetry(ctx, moved)
	}
}

func (r *reads) leaderReadIndex(ctx context.Context, lead leader, moved <-chan struct{}) (uint64, error) {
	// The timeout is what a leader needs: the leader may have ended without a message.
	ctx, done := context.WithTimeout(ctx, 5*r.opts.ElectionTimeout)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer cancelWhen(moved, cancel)()
	term := r.raft.CurrentTerm()
	var index uint64
	var err error
	if lead.Self {
		index, err = r.serve(ctx, r.id, term)
	} else {
		var answer []byte
		answer, err = r.Call(ctx, string(lead.Address), callRead, binary.LittleEndian.AppendUint64(nil, term))
		if err == nil && len(answer) == 8 {
			index = binary.LittleEndian.Uint64(answer)
		} else if err == nil {
			err = status.Error(codes.Internal, "raftstore: the leader's answer is too short")
		}
	}
	if err != nil && ctx.Err() != nil {
		err = errMoved // the deadline was not the caller's
	}
	return index, err
}

// serve returns the index of the newest committed command, once it is certain that no other server led when the call
// began: a majority of the voters was still in this server's term then. The asking voter counts, since it read its term
// after its reads began.
//
// A leader of a later term would have been elected by a majority before. One of the voters asked here would be in that
// majority too, and a server's term never falls. What was acknowledged, or read on any server, was committed: in this
// term by this leader, which knew it first, and in earlier terms before this leader's barrier. The index is not the one
// that this server has applied: a follower may have applied more, and answered reads with it.
func (r *reads) serve(ctx context.Context, asker raft.ServerID, askersTerm uint64) (uint64, error) {
	lead, _ := r.leadership.get()
	if !lead.Leader {
		return 0, errNotLeader
	}
	index, err := r.committedCommand()
	if err != nil {
		return 0, err
	}
	servers := r.raft.GetConfiguration().Configuration().Servers
	if r.raft.CurrentTerm() != lead.Term || askersTerm > lead.Term {
		return 0, errNotLeader
	}
	voters, missing := 0, 1
	var ask []raft.Server
	for _, server := range servers {
		switch {
		case server.Suffrage != raft.Voter:
			continue
		case server.ID == r.id, server.ID == asker && askersTerm == lead.Term:
			missing--
		default:
			ask = append(ask, server)
		}
		voters++
	}
	if missing += voters / 2; missing <= 0 {
		return index, nil
	}
	return index, r.confirmTerm(ctx, lead.Term, ask, missing)
}

// committedCommand returns the index of the newest committed command. Behind it there may be entries of raft's own,
// which the state machine never sees.
func (r *reads) committedCommand() (uint64, error) {
	applied := r.fsm.view().Applied()
	for index := r.raft.CommitIndex(); index > applied; index-- {
		var entry raft.Log
		err := r.logs.GetLog(index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			// A snapshot replaced this entry and all before it. So the state machine has applied the commands among
			// them, or has read their effect from the snapshot.
			return r.fsm.view().Applied(), nil
		}
		if err != nil {
			return 0, errNotLeader
		}
		if entry.Type == raft.LogCommand {
			return index, nil
		}
	}
	return applied, nil
}

// confirmTerm returns nil as soon as enough servers have replied that they are in the given term. missing is how many
// are enough.
func (r *reads) confirmTerm(ctx context.Context, term uint64, servers []raft.Server, missing int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*r.opts.ElectionTimeout)
	defer cancel()
	terms := make(chan uint64, len(servers)) // room for each, since the last ones are not waited for
	for _, server := range servers {
		go func() { terms <- r.fetchTerm(ctx, server) }()
	}
	for range servers {
		switch t := <-terms; {
		case t > term:
			return errNotLeader
		case t == term:
			missing--
		}
		if missing == 0 {
			return nil
		}
	}
	return errNotLeader
}

// fetchTerm returns a server's term, or 0 if it does not answer. The answer has the server's id, since another server
// may be at that address by now.
func (p *peers) fetchTerm(ctx context.Context, server raft.Server) uint64 {
	answer, err := p.Call(ctx, string(server.Address), callTerm, nil)
	if err != nil || len(answer) < 8 || string(answer[8:]) != string(server.ID) {
		return 0
	}
	return binary.LittleEndian.Uint64(answer)
}
