// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/appendfilter"
)

// ErrWithheld says that a message was not sent because it would keep or win leadership for a server that cannot store
// anything at the moment.
var ErrWithheld = errors.New("peer: this server's disk stalls, so it holds back the messages that keep or win leadership")

func (t *Transport) withheld() error {
	if t.opts.Withhold != nil && t.opts.Withhold() {
		return ErrWithheld
	}
	return nil
}

// LocalAddr returns the address at which others reach this server.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.opts.Address) }

// EncodePeer returns the address as bytes.
func (t *Transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer reverses EncodePeer.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// Consumer returns the channel of the other servers' messages, for raft.
func (t *Transport) Consumer() <-chan raft.RPC { return t.rpcs }

// forwardToRaft notes what each message says (observe) and passes the message on to raft, through the filter if there
// is one. A message that raft does not take in time is answered with errBusy. From then on, until raft takes a message,
// only the newest message waits, and the others are answered so at once.
func (t *Transport) forwardToRaft() {
	busy := false
	var next *raft.RPC // arrived while another message waited
	toRaft := func(rpc raft.RPC) bool {
		late := time.NewTimer(t.votesTime())
		defer late.Stop()
		var newer <-chan raft.RPC
		if busy {
			newer = t.beats.Consumer()
		}
		select {
		case t.rpcs <- rpc:
			busy = false
			return true
		case n := <-newer:
			next = &n
		case <-late.C:
			busy = true
		case <-t.ctx.Done():
			return false // NetworkTransport also stops waiting for an answer
		}
		rpc.Respond(nil, errBusy)
		return true
	}
	handle := toRaft
	if t.opts.Snapshot != nil {
		filter := &appendfilter.Filter{
			Snapshot: t.opts.Snapshot, Install: t.opts.Install, Raft: toRaft, Go: func(f func()) { t.tasks.Go(f) },
		}
		handle = func(rpc raft.RPC) bool { return filter.Handle(t.ctx, rpc) }
	}
	for {
		if next == nil {
			select {
			case rpc := <-t.beats.Consumer():
				next = &rpc
			case <-t.ctx.Done():
				return
			}
		}
		rpc := *next
		next = nil
		t.observe(rpc)
		if !handle(rpc) {
			return
		}
	}
}

// observe notes what a message says of the leader and of addresses, before raft handles it.
func (t *Transport) observe(rpc raft.RPC) {
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		t.record(m.RPCHeader, m.Term)
	case *raft.InstallSnapshotRequest:
		t.record(m.RPCHeader, m.Term)
	case *raft.RequestVoteRequest:
		t.movedServers.recordAddress(string(m.ID), string(m.Addr))
	case *raft.RequestPreVoteRequest:
		t.movedServers.recordAddress(string(m.ID), string(m.Addr))
	case *raft.TimeoutNowRequest:
		if t.opts.OnTransfer != nil {
			t.opts.OnTransfer()
		}
	}
}

// ProtocolVersion is the version of raft's protocol that this server says it speaks. It is not the library's newest, so
// that an update of the library changes nothing that an older server reads.
const ProtocolVersion raft.ProtocolVersion = 3

// SetHeartbeatHandler installs handleHeartbeat, and ignores raft's own handler. That one runs beside raft's main loop
// and changes term and state at the same time. A candidate could learn of a later term that way and then get the last
// vote for its own term. It would lead in the term in which another server was elected (TestLateVoteWinsNoLaterTerm).
func (t *Transport) SetHeartbeatHandler(func(raft.RPC)) {
	t.beats.SetHeartbeatHandler(t.handleHeartbeat)
}

// busyAfter is how long raft's main loop may take to accept a heartbeat.
const busyAfter = 25 * time.Millisecond

// errBusy is the answer to a message that raft's main loop has not taken for as long as its sender waits at most. Once
// raft has missed one in that way, the next are answered so as soon as a newer one arrives. Without an answer, the
// handler would keep its goroutine and its connection for as long as a stalled disk blocks raft, and the sender makes
// another connection each time.
var errBusy = errors.New("peer: raft is busy here, its disk may be stalled")

// handleHeartbeat passes a heartbeat on to raft. Raft's main loop may not take it, since it waits for a disk. If raft
// follows that leader in that term, its answer is known, and handleHeartbeat gives that answer: a follower's disk must
// not depose the leader.
func (t *Transport) handleHeartbeat(rpc raft.RPC) {
	t.observe(rpc)
	busy, late := time.NewTimer(busyAfter), time.NewTimer(t.opts.Timeout)
	defer busy.Stop()
	defer late.Stop()
	for {
		select {
		case t.rpcs <- rpc:
			return
		case <-t.ctx.Done():
			return // NetworkTransport also stops waiting for an answer
		case <-late.C:
			rpc.Respond(nil, errBusy)
			return
		case <-busy.C:
		}
		m, ok := rpc.Command.(*raft.AppendEntriesRequest)
		if ok && t.opts.Follows != nil && t.opts.Follows(raft.ServerID(m.ID), m.Term) {
			rpc.Respond(&raft.AppendEntriesResponse{
				RPCHeader: raft.RPCHeader{ProtocolVersion: ProtocolVersion, ID: []byte(t.opts.ID), Addr: []byte(t.opts.Address)},
				Term:      m.Term, Success: true,
			}, nil)
			return
		}
	}
}

// AppendEntries sends entries or a heartbeat and waits for the answer.
func (t *Transport) AppendEntries(id raft.ServerID, a raft.ServerAddress, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse) error {
	if err := t.withheld(); err != nil {
		return err
	}
	beat := heartbeat(args)
	network, c := t.entries, classEntries
	if beat {
		network, c = t.beats, classBeats
	}
	var start time.Time
	// Raft reuses resp for all heartbeats. Fields left from an earlier answer must not be taken for this answer.
	var fresh raft.AppendEntriesResponse
	p := t.peer(string(id))
	if !beat {
		p.fitToSize(args, t.opts.Next)
		boundCommit(args)
		p.sending(args)
	}
	once := func(to raft.ServerAddress) error {
		fresh, start = raft.AppendEntriesResponse{}, time.Now()
		return network.AppendEntries(id, to, args, &fresh)
	}
	attempt := func() error {
		began := time.Now()
		if !beat {
			p.recordSent(args)
		}
		err := t.send(id, a, c, once)
		if !beat {
			p.adjustSize(args, time.Since(began), t.entriesTime(), err)
		}
		return err
	}
	began := time.Now()
	err := attempt()
	if err != nil && !beat && t.awaitReply(p, began) {
		if err = t.withheld(); err == nil {
			p.shorten(args) // the message may have been too large for the link
			boundCommit(args)
			err = attempt()
		}
	}
	*resp = fresh
	accepted := err == nil && fresh.Success && fresh.Term == args.Term
	if !beat {
		p.outcome(args, accepted)
	}
	if err != nil {
		return err
	}
	if beat {
		p.rtts.Observe(time.Since(start))
		if accepted {
			p.reply(args.Term)
		}
	} else {
		t.push(p)
	}
	return nil
}

// heartbeat recognizes raft's heartbeats as NetworkTransport does.
func heartbeat(r *raft.AppendEntriesRequest) bool {
	return r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

// RequestVote requests a vote.
func (t *Transport) RequestVote(id raft.ServerID, a raft.ServerAddress, args *raft.RequestVoteRequest,
	resp *raft.RequestVoteResponse) error {
	if err := t.withheld(); err != nil {
		return err
	}
	return t.send(id, a, classBeats, func(to raft.ServerAddress) error {
		return t.votes.RequestVote(id, to, args, resp)
	})
}

// RequestPreVote asks whether a vote would be given.
func (t *Transport) RequestPreVote(id raft.ServerID, a raft.ServerAddress, args *raft.RequestPreVoteRequest,
	resp *raft.RequestPreVoteResponse) error {
	if err := t.withheld(); err != nil {
		return err
	}
	return t.send(id, a, classBeats, func(to raft.ServerAddress) error {
		return t.beats.RequestPreVote(id, to, args, resp)
	})
}

// TimeoutNow transfers the leadership to a server, which may be this one. It is never withheld: a server with a stalled
// disk should give up its leadership.
func (t *Transport) TimeoutNow(id raft.ServerID, a raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if string(id) == t.opts.ID {
		return t.handleTimeoutNow(args, resp)
	}
	return t.send(id, a, classBeats, func(to raft.ServerAddress) error {
		return t.beats.TimeoutNow(id, to, args, resp)
	})
}

// handleTimeoutNow passes the message to this server's own raft: the only voter of a store need not wait for a leader
// that cannot exist.
func (t *Transport) handleTimeoutNow(args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	ctx, cancel := context.WithTimeout(t.ctx, t.opts.Timeout)
	defer cancel()
	answers := make(chan raft.RPCResponse, 1) // capacity 1, since raft does not wait for a reader
	select {
	case t.rpcs <- raft.RPC{Command: args, RespChan: answers}:
	case <-ctx.Done():
		return fmt.Errorf("stand for election: %w", ctx.Err())
	}
	select {
	case a := <-answers:
		if r, ok := a.Response.(*raft.TimeoutNowResponse); ok {
			*resp = *r
		}
		return a.Error
	case <-ctx.Done():
		return fmt.Errorf("stand for election: %w", ctx.Err())
	}
}

// StartElection makes this server a candidate now, as a leadership transfer to it would. It reports whether raft took
// the message.
func (t *Transport) StartElection(ctx context.Context) bool {
	answer := make(chan raft.RPCResponse, 1) // capacity 1, since raft does not wait for a reader
	rpc := raft.RPC{RespChan: answer, Command: &raft.TimeoutNowRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: ProtocolVersion, Addr: []byte(t.opts.Address)},
	}}
	select {
	case t.rpcs <- rpc:
		return true
	case <-ctx.Done():
	case <-t.ctx.Done():
	}
	return false
}

// InstallSnapshot streams a snapshot. It has no time limit while it makes progress.
func (t *Transport) InstallSnapshot(id raft.ServerID, a raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.withheld(); err != nil {
		return err
	}
	err := causeOf(t.snapshots.InstallSnapshot(id, target(id, a), args, resp, data))
	t.recordOutcome(id, a, err)
	return err
}

// send sends a message. It sends it again if it failed on a connection from before a restart of the peer. There are at
// most as many of these as fit the pool.
func (t *Transport) send(id raft.ServerID, a raft.ServerAddress, c class, once func(raft.ServerAddress) error) error {
	to := target(id, a)
	var err error
	var start time.Time
	for range maxPool + 2 {
		start = time.Now()
		err = causeOf(once(to))
		if err == nil || !isBroken(err) || t.ctx.Err() != nil {
			break
		}
		t.purge(string(to), c, start)
	}
	t.recordOutcome(id, a, err)
	if c == classBeats {
		t.revive(id, to, start, err)
	}
	return err
}

// revive ends connections on which data waits since packets were lost. When heartbeats succeed again on a new
// connection, TCP may not retransmit on the old ones for as long as the loss lasted.
func (t *Transport) revive(id raft.ServerID, to raft.ServerAddress, began time.Time, err error) {
	p := t.peer(string(id))
	switch {
	case err == nil:
		if since := p.recovered(); !since.IsZero() {
			t.purge(string(to), classBeats, since)
			t.purge(string(to), classEntries, since)
		}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded): // context.DeadlineExceeded while dialing
		p.recordMiss(began)
	}
}

// causeOf returns the error of the connection that an error of msgpack wraps. Errors of msgpack have no method Unwrap.
func causeOf(err error) error {
	if c, ok := err.(interface{ Cause() error }); ok && c.Cause() != nil {
		return c.Cause()
	}
	return err
}

// isBroken says whether an established connection failed, other than by timeout.
func isBroken(err error) bool {
	if _, dial := errors.AsType[*dialError](err); dial || errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if _, op := errors.AsType[*net.OpError](err); op {
		return true
	}
	ends := []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE}
	return slices.ContainsFunc(ends, func(e error) bool { return errors.Is(err, e) })
}

// recordOutcome records whether a message was answered.
func (t *Transport) recordOutcome(id raft.ServerID, a raft.ServerAddress, err error) {
	p := t.peer(string(id))
	_, dial := errors.AsType[*dialError](err)
	switch {
	case err == nil:
		p.noteReply(string(a))
	case dial, isBroken(err), errors.Is(err, os.ErrDeadlineExceeded),
		err.Error() == errBusy.Error(): // sent by the other server, so only its text is left
		if p.recordFailure(string(a)) && t.ctx.Err() == nil {
			t.opts.Logger.Info("a server does not answer", "peer", id, "address", a, "error", err)
		}
	default: // raft's own error, sent by the other server
		p.noteReply(string(a))
	}
}

// AppendEntriesPipeline fails. So raft sends each message after the answer to the one before, with all that the peer
// lacks by then. In its pipeline raft sends a lagging follower one message for each new entry or CommitTimeout,
// whatever the follower can accept.
func (t *Transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}
