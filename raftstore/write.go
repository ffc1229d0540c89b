// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/coracle-k8s/coracle/raftstore/fence"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// retryPause is how long to wait before asking the same leader again.
const retryPause = 10 * time.Millisecond

// errNotLeader is what a server answers that is asked for something only the
// leader does.
var errNotLeader = status.Error(codes.Unavailable, "raftstore: this server does not lead")

// Write runs a checked command through the log, wherever the leader is, and
// returns the state machine's answer. Errors are etcd's.
func (s *Store) Write(ctx context.Context, req mvcc.Request) (any, error) {
	s.opts.Counters.Pending.Add(1)
	defer s.opts.Counters.Pending.Add(-1)
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if err := s.withinQuota(req); err != nil {
		return nil, err
	}
	c := mvcc.Command{Request: req}
	if term := fence.TermOf(ctx); term != 0 {
		res, err := s.writeInTerm(ctx, c, term)
		return res, tellRefused(ctx, err)
	}
	if s.peers == nil {
		return s.writeAlone(ctx, c)
	}
	return s.writeOnce(ctx, c)
}

// writeAlone is for the only server of a cluster: there is nobody to turn to.
func (s *Store) writeAlone(ctx context.Context, c mvcc.Command) (any, error) {
	if err := s.waitLeader(ctx); err != nil {
		return nil, err
	}
	if err := s.admit(); err != nil {
		return nil, err
	}
	res, err := s.proposer.propose(ctx, nil, c)
	return s.outcome(ctx, res, err)
}

// writeInTerm runs a command only in this server's own leadership of a term.
func (s *Store) writeInTerm(ctx context.Context, c mvcc.Command, term uint64) (any, error) {
	lead, changed := s.lead.get()
	if !lead.Leader || lead.Term != term {
		return nil, mvcc.ErrFenced
	}
	if err := s.admit(); err != nil {
		return nil, err
	}
	c.Fence = term
	res, err := s.proposer.propose(ctx, changed, c)
	if errors.Is(err, errUntried) && ctx.Err() == nil {
		return nil, mvcc.ErrFenced
	}
	return s.outcome(ctx, res, err)
}

func (s *Store) outcome(ctx context.Context, res mvcc.Result, err error) (any, error) {
	if errors.Is(err, errUntried) && ctx.Err() != nil {
		err = contextError(ctx)
	}
	if err != nil {
		s.opts.Counters.ProposalsFailed.Add(1)
		return nil, proposeError(err)
	}
	return res.Response, res.Err
}

// writeOnce runs a command exactly once, however often it has to be sent. If
// it gives up, the outcome is open.
func (s *Store) writeOnce(ctx context.Context, c mvcc.Command) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.RequestTimeout)
	defer cancel()
	for {
		done, ok := s.session.number(&c)
		if !ok {
			if err := s.openSession(ctx); err != nil {
				return s.outcome(ctx, mvcc.Result{}, err)
			}
			continue
		}
		res, attempts, err := s.deliver(ctx, c)
		done()
		if err != nil || !errors.Is(res.Err, mvcc.ErrSession) && !errors.Is(res.Err, mvcc.ErrStale) {
			return s.outcome(ctx, res, err)
		}
		if errors.Is(res.Err, mvcc.ErrSession) {
			s.session.lost(c.Session)
		}
		if attempts > 1 {
			return nil, rpctypes.ErrGRPCTimeoutDueToLeaderFail // an earlier attempt may have been done
		}
		// Refused, hence not done: once more, under another number.
	}
}

// openSession opens this server's session, unless another caller did just now.
func (s *Store) openSession(ctx context.Context) error {
	select {
	case s.opening <- struct{}{}:
	case <-ctx.Done():
		return contextError(ctx)
	}
	defer func() { <-s.opening }()
	if s.session.isOpen() {
		return nil
	}
	res, _, err := s.deliver(ctx, mvcc.Command{Request: wrapperspb.String(s.name)})
	if err = errors.Join(err, res.Err); err != nil {
		return err
	}
	s.session.open(res.Response.(*wrapperspb.UInt64Value).Value)
	return nil
}

// deliver brings a command to the leader, to one after the other if need be,
// until one answers. It says how many may have got it.
func (s *Store) deliver(ctx context.Context, c mvcc.Command) (res mvcc.Result, attempts int, err error) {
	for {
		lead, moved, err := s.awaitLeader(ctx)
		if attempts > 0 && errors.Is(err, rpctypes.ErrGRPCNoLeader) {
			err = errMoved // the one before may have done it
		}
		if err != nil {
			return res, attempts, err
		}
		if res, err = s.attempt(ctx, lead, moved, c); !errors.Is(err, errUntried) {
			attempts++
		}
		if err == nil && errors.Is(res.Err, rpctypes.ErrGRPCNoSpace) {
			err = res.Err // the leader refused it: the state machine knows no quota
		}
		if err != nil && s.worthRetry(ctx, err) {
			s.pause(ctx, moved)
			continue
		}
		if err != nil && attempts > 1 {
			// This one may have been refused; an earlier one may be done.
			err = errors.Join(errMoved, err)
		}
		return res, attempts, err
	}
}

// attempt brings a command to one leader.
func (s *Store) attempt(ctx context.Context, lead leader, moved <-chan struct{}, c mvcc.Command) (mvcc.Result, error) {
	if !lead.Self {
		return s.forwarder.propose(ctx, moved, c)
	}
	if err := s.admit(); err != nil {
		return mvcc.Result{}, err
	}
	return s.proposer.propose(ctx, moved, c)
}

// worthRetry says whether an error is the leader's change, or its end.
func (s *Store) worthRetry(ctx context.Context, err error) bool {
	if ctx.Err() != nil || s.ctx.Err() != nil {
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

// pause waits a moment, or for another leader.
func (s *Store) pause(ctx context.Context, moved <-chan struct{}) {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-moved:
	case <-ctx.Done():
	}
}

// enter hands an entry to raft.
func (s *Store) enter(entry []byte) func() ([]mvcc.Result, error) {
	future := s.raft.Apply(mvcc.Pack(entry), 0)
	return func() ([]mvcc.Result, error) {
		if err := future.Error(); err != nil {
			return nil, err
		}
		return future.Response().([]mvcc.Result), nil
	}
}

// forward hands a batch to the leader, and waits until this server has applied
// what came of it: who wrote through a server finds it there.
func (s *Store) forward(entry []byte) func() ([]mvcc.Result, error) {
	lead, moved := s.leader.get()
	return func() ([]mvcc.Result, error) {
		if lead.Self || !lead.known() {
			return nil, errNotLeader
		}
		s.forwarded.Add(1)
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.RequestTimeout)
		defer cancel()
		call, giveUp := context.WithCancel(ctx)
		defer giveUp()
		stop := cancelWhen(moved, giveUp)
		answer, err := s.peers.Call(call, string(lead.Address), callWrite, entry)
		stop()
		if err != nil {
			return nil, err
		}
		if len(answer) < 8 {
			return nil, status.Error(codes.Internal, "raftstore: the leader's answer is too short")
		}
		results, err := mvcc.DecodeResults(answer[8:])
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		if count, err := mvcc.CommandsOf(entry); err != nil || count != len(results) {
			return nil, status.Error(codes.Internal, "raftstore: the leader's answer is not for what it was asked")
		}
		_, _ = s.fsm.wait(ctx, binary.LittleEndian.Uint64(answer)) // it is done; who cannot wait is told so all the same
		return results, nil
	}
}

// cancelWhen calls cancel when c is closed, until the returned function is
// called.
func cancelWhen(c <-chan struct{}, cancel func()) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-c:
			cancel()
		case <-over:
		}
	}()
	return func() { close(over) }
}

// serveWrite is the leader's part of forward.
func (s *Store) serveWrite(ctx context.Context, entry []byte) ([]byte, error) {
	// In full, bodies too: what is in the log must be readable for all.
	commands, err := mvcc.DecodeEntry(entry)
	if err != nil || len(commands) == 0 || !mvcc.Plain(entry) {
		return nil, status.Errorf(codes.InvalidArgument, "raftstore: forwarded writes: %v", err)
	}
	lead, moved := s.leader.get()
	if !lead.Self {
		return nil, errNotLeader
	}
	if err := s.admit(); err != nil {
		return nil, err
	}
	results, err := s.proposeGathered(ctx, moved, entry, commands)
	if err != nil {
		if s.ctx.Err() == nil && s.worthRetry(ctx, err) {
			err = errNotLeader
		}
		return nil, proposeError(err)
	}
	answer := binary.LittleEndian.AppendUint64(nil, s.fsm.view().Applied())
	encoded, err := mvcc.EncodeResultsWithin(results, peer.MaxAnswer-len(answer))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return append(answer, encoded...), nil
}

// proposeGathered runs the commands that another server gathered, without those that
// this server's quota refuses.
func (s *Store) proposeGathered(ctx context.Context, moved <-chan struct{}, entry []byte, commands []mvcc.Command) ([]mvcc.Result, error) {
	results := make([]mvcc.Result, len(commands))
	left, taken := mvcc.NewEntry(nil), make([]int, 0, len(commands))
	for i, c := range commands {
		if results[i].Err = s.withinQuota(c.Request); results[i].Err == nil {
			taken = append(taken, i)
		}
	}
	switch len(taken) {
	case len(commands):
		return s.proposer.proposeAll(ctx, moved, mvcc.Encoded(entry), len(commands))
	case 0:
		return results, nil
	}
	var err error
	for _, i := range taken {
		if left, err = mvcc.AppendCommand(left, commands[i]); err != nil {
			return nil, err
		}
	}
	done, err := s.proposer.proposeAll(ctx, moved, mvcc.Encoded(left), len(taken))
	for n := range done {
		results[taken[n]] = done[n]
	}
	return results, err
}
