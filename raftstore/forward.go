// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// forwarder sends this server's writes to the leader. While this server leads, it runs the writes of the others.
type forwarder struct {
	*peers
	leader    *leaderBoard
	quota     *quota
	writer    *writer
	batches   *proposer // gathers commands into batches for the leader
	forwarded atomic.Uint64
	session   session
	opening   chan struct{} // capacity 1: held by the goroutine that opens the session
}

// write runs a command exactly once, however often the command has to be sent. If write gives up, the outcome is open.
func (f *forwarder) write(ctx context.Context, c mvcc.Command) (any, error) {
	ctx, cancel := etcdapi.WithTimeout(ctx, f.opts.RequestTimeout)
	defer cancel()
	for {
		done, ok := f.session.addNumber(&c)
		if !ok {
			if err := f.openSession(ctx); err != nil {
				return f.writer.outcome(ctx, mvcc.Result{}, err)
			}
			continue
		}
		res, attempts, err := f.deliverCommand(ctx, c)
		done()
		if err != nil || !errors.Is(res.Err, mvcc.ErrSession) && !errors.Is(res.Err, mvcc.ErrStale) {
			return f.writer.outcome(ctx, res, err)
		}
		if errors.Is(res.Err, mvcc.ErrSession) {
			f.session.closeLost(c.Session)
		}
		if attempts > 1 {
			return nil, rpctypes.ErrGRPCTimeoutDueToLeaderFail // an earlier attempt may have been done
		}
		// The command was refused, so it was not done. write tries again under another number.
	}
}

// openSession opens this server's session, unless another caller has just opened one.
func (f *forwarder) openSession(ctx context.Context) error {
	select {
	case f.opening <- struct{}{}:
	case <-ctx.Done():
		return contextError(ctx)
	}
	defer func() { <-f.opening }()
	if f.session.isOpen() {
		return nil
	}
	res, _, err := f.deliverCommand(ctx, mvcc.Command{Request: wrapperspb.String(f.name)})
	if err = errors.Join(err, res.Err); err != nil {
		return err
	}
	f.session.open(res.Response.(*wrapperspb.UInt64Value).Value)
	return nil
}

// deliverCommand sends a command to the leader until a leader answers, which may be a later leader. attempts is how
// many times a leader may have received it.
func (f *forwarder) deliverCommand(ctx context.Context, c mvcc.Command) (res mvcc.Result, attempts int, err error) {
	for {
		lead, moved, err := f.leader.await(ctx)
		if attempts > 0 && errors.Is(err, rpctypes.ErrGRPCNoLeader) {
			err = errMoved // the leader before may have done it
		}
		if err != nil {
			return res, attempts, err
		}
		if res, err = f.attempt(ctx, lead, moved, c); !errors.Is(err, errUntried) {
			attempts++
		}
		if err == nil && errors.Is(res.Err, rpctypes.ErrGRPCNoSpace) {
			err = res.Err // the leader refused it: the state machine knows no quota
		}
		if err != nil && f.worthRetry(ctx, err) {
			pauseRetry(ctx, moved)
			continue
		}
		if err != nil && attempts > 1 {
			// This attempt may have been refused, but an earlier one may be done.
			err = errors.Join(errMoved, err)
		}
		return res, attempts, err
	}
}

// attempt sends a command to one leader once, or proposes it if that is this server.
func (f *forwarder) attempt(
	ctx context.Context, lead leader, moved <-chan struct{}, c mvcc.Command,
) (mvcc.Result, error) {
	if !lead.Self {
		return f.batches.propose(ctx, bounds{leadershipEnded: moved}, c)
	}
	return f.writer.runForClient(ctx, bounds{leadershipEnded: moved}, c)
}

// forward sends a batch to the leader, and waits until this server has applied it: a client that wrote through a server
// finds the write there. deleting are the numbers of the commands that are steps of a deletion.
func (f *forwarder) forward(entry []byte, deleting []int) func() ([]mvcc.Result, error) {
	lead, moved := f.leader.get()
	return func() ([]mvcc.Result, error) {
		if lead.Self || !lead.exists() {
			return nil, errNotLeader
		}
		f.forwarded.Add(1)
		ctx, cancel := context.WithTimeout(f.ctx, f.opts.RequestTimeout)
		defer cancel()
		call, giveUp := context.WithCancelCause(ctx)
		defer giveUp(nil)
		stop := cancelWhen(moved, giveUp)
		answer, err := f.send(call, string(lead.Address), entry, deleting)
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
		// The batch is done: a caller that cannot wait gets the results anyway.
		_, _ = f.leader.awaitApplied(ctx, f.fsm, binary.LittleEndian.Uint64(answer))
		return results, nil
	}
}

// send sends a batch to the server at an address. A server of an older version does not know steps of deletions, and
// takes them for other writes.
func (f *forwarder) send(ctx context.Context, address string, entry []byte, deleting []int) ([]byte, error) {
	if len(deleting) > 0 {
		answer, err := f.Call(ctx, address, callDelete, append(encodeNumbers(deleting), entry...))
		if status.Code(err) != codes.Unimplemented {
			return answer, err
		}
	}
	return f.Call(ctx, address, callWrite, entry)
}

// encodeNumbers encodes numbers for the beginning of a call, as varints: how many there are, and each of them.
func encodeNumbers(numbers []int) []byte {
	out := binary.AppendUvarint(nil, uint64(len(numbers)))
	for _, n := range numbers {
		out = binary.AppendUvarint(out, uint64(n))
	}
	return out
}

// decodeNumbers decodes what encodeNumbers encoded, and returns the rest of the call.
func decodeNumbers(body []byte) (numbers []int, rest []byte, ok bool) {
	count, size := binary.Uvarint(body)
	if size <= 0 {
		return nil, nil, false
	}
	for body = body[size:]; count > 0; count-- {
		n, size := binary.Uvarint(body)
		if size <= 0 || n > math.MaxInt32 {
			return nil, nil, false
		}
		numbers, body = append(numbers, int(n)), body[size:]
	}
	return numbers, body, true
}

// serveDelete does what serveWrite does for a batch with steps of deletions.
func (f *forwarder) serveDelete(ctx context.Context, body []byte) ([]byte, error) {
	deleting, entry, ok := decodeNumbers(body)
	if !ok {
		return nil, status.Error(codes.InvalidArgument, "raftstore: forwarded deletions have no numbers")
	}
	return f.serveWrite(ctx, entry, deleting)
}

// serveWrite runs a batch that another server's forward sent to this leader. deleting are the numbers of the commands
// that are steps of a deletion.
func (f *forwarder) serveWrite(ctx context.Context, entry []byte, deleting []int) ([]byte, error) {
	// The commands are decoded with their bodies: all servers must be able to read what is in the log.
	commands, err := mvcc.DecodeEntry(entry)
	if err != nil || len(commands) == 0 || !mvcc.Plain(entry) {
		return nil, status.Errorf(codes.InvalidArgument, "raftstore: forwarded writes: %v", err)
	}
	for _, n := range deleting {
		if n < len(commands) {
			commands[n].Deleting = true
		}
	}
	lead, moved := f.leader.get()
	if !lead.Self {
		return nil, errNotLeader
	}
	if err := f.admit(); err != nil {
		return nil, err
	}
	results, err := f.proposeGathered(ctx, moved, entry, commands)
	if err != nil {
		if f.ctx.Err() == nil && f.worthRetry(ctx, err) {
			err = errNotLeader
		}
		return nil, proposeError(ctx, err)
	}
	answer := binary.LittleEndian.AppendUint64(nil, f.fsm.view().Applied())
	encoded, err := mvcc.EncodeResultsWithin(results, peer.MaxReply-len(answer))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return append(answer, encoded...), nil
}

// proposeGathered runs the commands that another server gathered, except those that the quota refuses.
func (f *forwarder) proposeGathered(
	ctx context.Context, moved <-chan struct{}, entry []byte, commands []mvcc.Command,
) ([]mvcc.Result, error) {
	results := make([]mvcc.Result, len(commands))
	left, taken := mvcc.NewEntry(nil), make([]int, 0, len(commands))
	for i, c := range commands {
		done, err := f.quota.admit(c)
		if err == nil {
			defer done()
			taken = append(taken, i)
		}
		results[i].Err = err
	}
	switch len(taken) {
	case len(commands):
		return f.writer.proposer.proposeAll(ctx, bounds{leadershipEnded: moved}, mvcc.Encoded(entry), len(commands))
	case 0:
		return results, nil
	}
	var err error
	for _, i := range taken {
		if left, err = mvcc.AppendCommand(left, commands[i], f.level()); err != nil {
			return nil, err
		}
	}
	done, err := f.writer.proposer.proposeAll(ctx, bounds{leadershipEnded: moved}, mvcc.Encoded(left), len(taken))
	for n := range done {
		results[taken[n]] = done[n]
	}
	return results, err
}
