// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/metrics"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// replication is what differs between a store that can have other servers and one without a network. Its embedded
// interfaces are implemented by the parts of [clustered] and by [standalone].
type replication struct {
	requests
	connections
	leading
	joining
	timeouts
	hooks
}

// requests are those of clients. See the promises of Store.Write, Linearizable and ConfirmTerm.
type requests interface {
	write(ctx context.Context, c mvcc.Command) (any, error)
	linearizable(ctx context.Context) (*mvcc.View, error)
	confirmLeading(ctx context.Context, term uint64) error
}

// connections are those between servers: a [peer.Transport].
type connections interface {
	Call(ctx context.Context, address, method string, body []byte) ([]byte, error)
	LeaderSeen() (id raft.ServerID, address raft.ServerAddress, term uint64)
	Contact(raft.ServerID) time.Time
	CompareClocks(address string)
	Offset(raft.ServerID) (peer.Offset, bool)
	CloseCalls(address string)
	StartElection(context.Context) bool // makes this server a candidate at once
}

// leading is what a leader does for the other servers.
type leading interface {
	prober
	runSteward(context.Context)
	transferVote(ctx context.Context, members []raft.Server, at uint64) error
}

type joining interface {
	hadPeers() bool        // whether there were other servers at an earlier start
	join(noted bool) error // joins the other servers, instead of beginning a cluster
	reportRemoval(context.Context)
}

type timeouts interface {
	setTimeouts()
	newTerm()
}

type hooks interface {
	run()       // is called once raft runs
	published() // is called for every new view
	// levelRaised is called when a new level was applied, before anything is written in its forms.
	levelRaised()
	sample(*metrics.Sample)
	close()
}

// asReplication returns the replication of a store without a network.
func (l standalone) asReplication() replication { return replication{l, l, l, l, l, l} }

// standalone is the replication of a cluster that has one server. There is no other server to ask, and none that has to
// confirm that this one leads.
type standalone struct {
	*replica
	*peer.Transport // has no connections
	leadership      *leadership
	writer          *writer
	transport       *raft.InmemTransport // raft's transport; nil until raft starts
}

func (l standalone) write(ctx context.Context, c mvcc.Command) (any, error) {
	if err := l.waitLeader(ctx); err != nil {
		return nil, err
	}
	res, err := l.writer.runForClient(ctx, bounds{timedOut: l.writer.timeLimit.exceeded()}, c)
	return l.writer.outcome(ctx, res, err)
}

// waitLeader waits until this server leads and may serve.
func (l standalone) waitLeader(ctx context.Context) error {
	lead, changed := l.leadership.get()
	if lead.Leader {
		return nil
	}
	timeout := l.opts.Clock.NewTimer(l.opts.RequestTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return contextError(ctx)
		case <-l.ctx.Done():
			return ErrClosed
		case <-timeout.C():
			return rpctypes.ErrGRPCTimeout
		case <-changed:
		}
		if lead, changed = l.leadership.get(); lead.Leader {
			return nil
		}
	}
}

// linearizable returns the newest view once this server leads and has applied the entries of earlier terms. That is
// enough, since no other server can acknowledge a write.
func (l standalone) linearizable(ctx context.Context) (*mvcc.View, error) {
	if err := l.waitLeader(ctx); err != nil {
		return nil, err
	}
	return l.fsm.view(), nil
}

func (l standalone) confirmLeading(_ context.Context, term uint64) error {
	return l.leadership.leadsIn(term)
}

func (standalone) join(bool) error {
	return errors.New("this server is to join other servers, but has no network configured to reach them")
}

// StartElection sends raft the message of a leadership transfer (TimeoutNow), which makes this server a candidate at
// once.
func (l standalone) StartElection(context.Context) bool {
	_, from := raft.NewInmemTransport("")
	from.Connect(l.address, l.transport)
	defer from.DisconnectAll()
	now := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: peer.ProtocolVersion}}
	return from.TimeoutNow(l.id, l.address, now, &raft.TimeoutNowResponse{}) == nil
}

func (l standalone) transferVote(context.Context, []raft.Server, uint64) error {
	return status.Errorf(codes.FailedPrecondition, "raftstore: %q is the only voter and cannot be removed", l.id)
}

func (l standalone) storageProbe(context.Context, func(storing) bool) storing {
	return func(id raft.ServerID) bool { return id == l.id }
}

func (standalone) reachingMajority(context.Context, []raft.Server, func(raft.Server, bool)) {}

func (standalone) hadPeers() bool                { return false }
func (standalone) run()                          {}
func (standalone) close()                        {}
func (standalone) published()                    {}
func (standalone) levelRaised()                  {}
func (standalone) setTimeouts()                  {}
func (standalone) newTerm()                      {}
func (standalone) reportRemoval(context.Context) {}
func (standalone) sample(*metrics.Sample)        {}
func (standalone) runSteward(context.Context)    {}
