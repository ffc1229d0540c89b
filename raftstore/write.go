// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/deleting"
	"github.com/coracle-k8s/coracle/raftstore/fence"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// retryPause is how long to wait before a request is sent to the same leader again.
const retryPause = 10 * time.Millisecond

// errNotLeader is the answer to a request that only the leader serves, from a server that does not lead.
var errNotLeader = status.Error(codes.Unavailable, "raftstore: this server does not lead")

// Write runs a checked command through the log, whichever server leads, and returns the state machine's answer. Errors
// are etcd's.
func (s *Store) Write(ctx context.Context, req mvcc.Request) (any, error) {
	s.replica.opts.Counters.Pending.Add(1)
	defer s.replica.opts.Counters.Pending.Add(-1)
	defer s.writer.writes.beginWrite()()
	if s.replica.ctx.Err() != nil {
		return nil, ErrClosed
	}
	c := mvcc.Command{Request: req, Deleting: deleting.Of(ctx)}
	if term := fence.TermOf(ctx); term != 0 {
		done, err := s.quota.admit(c)
		if err != nil {
			return nil, err
		}
		defer done()
		res, err := s.writer.inTerm(ctx, c, term, s.writer.timeLimit.exceeded())
		return res, endTermIfFenced(ctx, err)
	}
	return s.replication.write(ctx, c)
}

// writer runs commands in a term that this server leads.
type writer struct {
	*replica
	leadership *leadership
	quota      *quota
	proposer   *proposer
	writes     underWay  // clients' writes under way
	timeLimit  timeLimit // for clients' writes
}

// runForClient runs a client's command while this server leads, if the disk and the quota have space for it.
func (w *writer) runForClient(ctx context.Context, b bounds, c mvcc.Command) (mvcc.Result, error) {
	if err := w.admit(); err != nil {
		return mvcc.Result{}, err
	}
	done, err := w.quota.admit(c)
	if err != nil {
		return mvcc.Result{}, err
	}
	defer done()
	return w.proposer.propose(ctx, b, c)
}

// runOwn runs a command that the store itself needs, in the term that this server leads. It waits until the command is
// done or the term is over, however long the disk takes. A timeout would not help: the store repeats what has failed,
// and a command that was given up may still be done later, after others.
func (w *writer) runOwn(ctx context.Context, req mvcc.Request) (any, error) {
	lead, _ := w.leadership.get()
	return w.inTerm(ctx, mvcc.Command{Request: req}, lead.Term, nil)
}

// inTerm runs a command only in this server's own leadership of a term. It gives up when late is closed.
func (w *writer) inTerm(ctx context.Context, c mvcc.Command, term uint64, late <-chan struct{}) (any, error) {
	c.Fence = term
	for {
		lead, changed := w.leadership.get()
		if !lead.Leader || lead.Term != term {
			return nil, mvcc.ErrFenced
		}
		if err := w.admit(); err != nil {
			return nil, err
		}
		res, err := w.proposer.propose(ctx, bounds{leadershipEnded: changed, timedOut: late}, c)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errUntried), errors.Is(err, raft.ErrNotLeader): // raft may know first that it does not lead
			return nil, mvcc.ErrFenced
		case errors.Is(err, raft.ErrLeadershipTransferInProgress): // the transfer may fail
			pauseRetry(ctx, changed)
			continue
		}
		return w.outcome(ctx, res, err)
	}
}

func (w *writer) outcome(ctx context.Context, res mvcc.Result, err error) (any, error) {
	if errors.Is(err, errUntried) && ctx.Err() != nil {
		err = contextError(ctx)
	}
	if err != nil {
		w.opts.Counters.ProposalsFailed.Add(1)
		return nil, proposeError(ctx, err)
	}
	return res.Response, res.Err
}

// worthRetry says whether an error means that the leader has changed or ended, so that a request should be sent again.
func (r *replica) worthRetry(ctx context.Context, err error) bool {
	if ctx.Err() != nil || r.ctx.Err() != nil {
		return false
	}
	switch {
	case errors.Is(err, errUntried), errors.Is(err, errMoved), errors.Is(err, raft.ErrNotLeader),
		errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return true
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.Canceled
}

// pauseRetry waits for retryPause, or until moved is closed.
func pauseRetry(ctx context.Context, moved <-chan struct{}) {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-moved:
	case <-ctx.Done():
	}
}

// enter proposes an entry to raft. The returned function waits for the results.
func (r *replica) enter(entry []byte, _ []int) func() ([]mvcc.Result, error) {
	future := r.raft.Apply(mvcc.Pack(entry, r.level()), 0)
	return func() ([]mvcc.Result, error) {
		if err := future.Error(); err != nil {
			return nil, err
		}
		return future.Response().([]mvcc.Result), nil
	}
}

// cancelWhen cancels a call to the leader when moved is closed. stop must be called when the call has ended.
func cancelWhen(moved <-chan struct{}, cancel context.CancelCauseFunc) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-moved:
			cancel(peer.ErrLeaderMoved)
		case <-over:
		}
	}()
	return func() { close(over) }
}
