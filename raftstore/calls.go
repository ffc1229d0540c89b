// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// Names of the calls between servers, each with its request → its answer. Frequent calls have binary requests and
// answers (little endian). The others have JSON.
const (
	callWrite   = "write"   // to the leader: an entry → applied index, results
	callDelete  = "delete"  // to the leader: numbers of the steps of deletions, an entry → as of callWrite
	callRead    = "read"    // to the leader: the asker's term → read index
	callTerm    = "term"    // → the server's term, its raft id
	callRenew   = "renew"   // to the leader: leaseCall → etcdapi.Lease
	callLease   = "lease"   // to the leader: leaseCall → etcdapi.Lease
	callLeases  = "leases"  // to the leader: → lease ids, by expiry
	callInfo    = "info"    // → infoReply
	callJoin    = "join"    // to the leader: joinCall
	callRemove  = "remove"  // to the leader: removeCall
	callPromote = "promote" // to the leader: promoteCall
	callRaise   = "raise"   // to the leader: raiseCall

	callReach         = "reach"    // → reachReply
	callElectionState = "standing" // → election.Report, of a server that misses the leader
)

// errDiskStalled is the answer of a server whose disk has been stalled for so long that the leader, which asked, should
// count the server as unresponsive.
var errDiskStalled = status.Error(codes.Unavailable, "raftstore: this server's disk is stalled")

// serveCall answers a call of another server. It does not have the timeout of a client's request: the calling server
// decides which error its client gets when that runs out.
func (p *clustered) serveCall(ctx context.Context, from, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.peers.opts.RequestTimeout)
	defer cancel()
	switch method {
	case callWrite:
		return p.forwarder.serveWrite(ctx, body, nil)
	case callRead:
		if len(body) != 8 {
			return nil, status.Error(codes.InvalidArgument, "raftstore: a read needs a term")
		}
		index, err := p.reads.serve(ctx, raft.ServerID(from), binary.LittleEndian.Uint64(body))
		if err != nil {
			return nil, err
		}
		return binary.LittleEndian.AppendUint64(nil, index), nil
	case callTerm:
		if p.peers.diskStalled() {
			return nil, errDiskStalled
		}
		return append(binary.LittleEndian.AppendUint64(nil, p.peers.raft.CurrentTerm()), p.peers.id...), nil
	case callElectionState:
		return serveJSON(ctx, body, p.elections.serveElectionState)
	case callReach:
		return serveJSON(ctx, body, p.elections.serveReach)
	case callInfo:
		return serveJSON(ctx, body, p.membership.serveInfo)
	case callJoin:
		return serveJSON(ctx, body, p.membership.serveJoin)
	}
	if serve := p.calls[method]; serve != nil {
		return serve(ctx, body)
	}
	return nil, status.Errorf(codes.Unimplemented, "raftstore: this version has no call %q", method)
}

// A callHandler answers the calls of one method. It belongs to a part of the store that is not in clustered.
type callHandler func(ctx context.Context, body []byte) ([]byte, error)

// callsOf returns the calls that c, l and f answer, by name.
func callsOf(c *Cluster, l *leases, f *forwarder) map[string]callHandler {
	return map[string]callHandler{
		callDelete:  f.serveDelete,
		callRenew:   handlerOf(l.renewHere),
		callLease:   handlerOf(l.leaseHere),
		callLeases:  handlerOf(l.leasesHere),
		callRemove:  handlerOf(c.serveRemove),
		callPromote: handlerOf(c.servePromote),
		callRaise:   handlerOf(c.serveRaise),
	}
}

func handlerOf[Q, A any](fn func(context.Context, Q) (A, error)) callHandler {
	return func(ctx context.Context, body []byte) ([]byte, error) { return serveJSON(ctx, body, fn) }
}

func serveJSON[Q, A any](ctx context.Context, body []byte, fn func(context.Context, Q) (A, error)) ([]byte, error) {
	var request Q
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "raftstore: not a request of this version: %v", err)
	}
	answer, err := fn(ctx, request)
	if err != nil {
		return nil, callError(err)
	}
	return json.Marshal(answer)
}

// callError makes an error ready to be sent to another server. Its gRPC status, and "not the leader", are kept.
func callError(err error) error {
	var said interface{ GRPCStatus() *status.Status }
	if errors.As(err, &said) {
		return said.GRPCStatus().Err() // without the errors that wrap it
	}
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return errNotLeader
	}
	return status.Error(codes.Unknown, err.Error())
}

// A caller calls the server at an address: a transport or a standalone store.
type caller = func(ctx context.Context, address, method string, body []byte) ([]byte, error)

// callAt calls a server by its address.
func callAt[A, Q any](ctx context.Context, call caller, address, method string, request Q) (answer A, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return answer, err
	}
	reply, err := call(ctx, address, method, body)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(reply, &answer); err != nil {
		return answer, status.Errorf(codes.Internal, "raftstore: not an answer of this version: %v", err)
	}
	return answer, nil
}

// askMembers asks servers concurrently, and returns the replies for which ask returns true. It waits for all of them,
// or until enough returns true for the replies so far: then it cancels the others. A nil enough means all.
func askMembers[S, T any](
	ctx context.Context, servers []S, ask func(context.Context, S) (T, bool), enough func([]T) bool,
) []T {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	var replies []T
	for _, server := range servers {
		asking.Go(func() {
			reply, ok := ask(ctx, server)
			mu.Lock()
			defer mu.Unlock()
			if !ok {
				return
			}
			if replies = append(replies, reply); enough != nil && enough(replies) {
				cancel()
			}
		})
	}
	asking.Wait()
	return replies
}

// withoutSelf returns the servers other than this one.
func (r *replica) withoutSelf(servers []raft.Server) []raft.Server {
	return slices.DeleteFunc(slices.Clone(servers), func(m raft.Server) bool { return m.ID == r.id })
}

// leaderRoute is what a part needs to send a request to the leader, which may be this server or another one.
type leaderRoute struct {
	*replica
	leader      *leaderBoard
	replication replication
}

// atLeader has a request served by the leader: by here if this server leads, else by a call of the method. The request
// may be served more than once.
func atLeader[A, Q any](
	ctx context.Context, to leaderRoute, method string, request Q, here func(context.Context, Q) (A, error),
) (answer A, err error) {
	ctx, cancel := etcdapi.WithTimeout(ctx, to.opts.RequestTimeout)
	defer cancel()
	for {
		lead, moved, err := to.leader.await(ctx)
		if err != nil {
			return answer, err
		}
		if lead.Self {
			answer, err = here(ctx, request)
		} else {
			call, cancel := context.WithCancelCause(ctx)
			stop := cancelWhen(moved, cancel)
			answer, err = callAt[A](call, to.replication.Call, string(lead.Address), method, request)
			stop()
			cancel(nil)
		}
		if err == nil || !to.worthRetry(ctx, err) {
			return answer, proposeErrorOrNil(ctx, err)
		}
		pauseRetry(ctx, moved)
	}
}
