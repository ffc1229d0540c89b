// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/raftstore/metrics"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Version is the version of etcd whose API is served. Clients use it to decide what they may request.
const Version = "3.7.0"

// Store has the methods of the store that the API needs. All errors are etcd's.
type Store interface {
	Log
	Leases
	Cluster
}

// Log is the replicated log and the state that results from it.
type Log interface {
	// View returns the newest state that this server has applied.
	View() *mvcc.View
	// Linearizable returns a view that holds every write that was acknowledged before the call, by any server.
	Linearizable(ctx context.Context) (*mvcc.View, error)
	// Write runs a command through the log and returns the state machine's
	// answer.
	Write(ctx context.Context, r mvcc.Request) (any, error)
	// Backup writes the whole state and returns its revision.
	Backup(ctx context.Context, w io.Writer) (revision int64, err error)
}

// Leases gives access to leases. The leader keeps them; other servers send it the requests.
type Leases interface {
	// RenewLease gives a lease its whole TTL again.
	RenewLease(ctx context.Context, id int64) (Lease, error)
	// Lease returns what the leader knows of a lease. If keys is true, that includes the keys that are attached to it.
	Lease(ctx context.Context, id int64, keys bool) (Lease, error)
	// LeaseIDs lists the leases, those that expire next first.
	LeaseIDs(ctx context.Context) ([]int64, error)
}

// Lease describes a lease, as the leader knows it. Times are in seconds.
type Lease struct {
	Exists  bool
	Granted int64
	Left    int64
	Keys    [][]byte
}

// Cluster gives access to the servers, as far as this one knows them.
type Cluster interface {
	// Term returns this server's Raft term.
	Term() uint64
	// EtcdStatus describes this server.
	EtcdStatus() ServerStatus
	// EtcdMembers lists the servers.
	EtcdMembers() []*pb.Member
	// RemoveMemberID removes a server from the cluster for good.
	RemoveMemberID(ctx context.Context, id uint64) error
	// PromoteMemberID gives a server a vote, in place of a voter that does not store.
	PromoteMemberID(ctx context.Context, id uint64) error
	// MoveLeader makes another voter the leader. Only the leader serves it.
	MoveLeader(ctx context.Context, id uint64) error
	// LeaderPresence says whether a leader is known now. The context ends when no leader has been known for a while.
	LeaderPresence() (known bool, present context.Context)
	// AwaitLeader returns when a leader is known, or the error of ctx or of the store's end.
	AwaitLeader(ctx context.Context) error
}

// ServerStatus is the state of a server for etcd's Maintenance.Status.
type ServerStatus struct {
	Committed uint64 // index of the last entry that is known to be committed
	Applied   uint64 // index of the last entry that was applied
	Leader    uint64 // the leader's member id; 0 if none is known
	Learner   bool
	Quota     int64 // bytes
	// Refusing says in plain words why writes are refused or fail at present.
	Refusing []string
	// NoSpace says that writes are refused for lack of space, on the disk or within the quota.
	NoSpace bool
}

// Options configure an API. All fields are required.
type Options struct {
	Store   Store
	Watches *watch.Hub
	// Closing ends when the store closes.
	Closing context.Context
	// Ready is closed once the state has everything that was acknowledged when this server started. Before that, the
	// state may be older.
	Ready               <-chan struct{}
	ClusterID, MemberID uint64
	MaxRequestBytes     int // limit of one request
	MaxTxnOps           int // limit of one transaction
	Counters            *metrics.Counters
	// RequestTimeout bounds a request whose context has no deadline.
	RequestTimeout time.Duration
}

// API serves requests of etcd's v3 contract from a store, without a connection.
type API struct{ o Options }

// New returns the API of a store.
func New(o Options) *API { return &API{o: o} }

// Closing returns the context that ends when the store closes.
func (a *API) Closing() context.Context { return a.o.Closing }

// MaxRequestBytes returns the limit of one request.
func (a *API) MaxRequestBytes() int { return a.o.MaxRequestBytes }

// Ready returns a channel that is closed once this server may be read without a request to the leader.
func (a *API) Ready() <-chan struct{} { return a.o.Ready }

// awaitReady waits until this server may be read without a request to the leader.
func (a *API) awaitReady(ctx context.Context) error {
	select {
	case <-a.o.Ready:
		return nil
	default:
	}
	select {
	case <-a.o.Ready:
		return nil
	case <-ctx.Done():
		return ContextError(ctx)
	case <-a.o.Closing.Done():
		return rpctypes.ErrGRPCStopped
	}
}

// Header returns the header of an answer about the present state.
func (a *API) Header() *pb.ResponseHeader { return a.HeaderAt(a.o.Store.View().Revision()) }

// HeaderAt returns the header of an answer about a revision.
func (a *API) HeaderAt(revision int64) *pb.ResponseHeader {
	h := &pb.ResponseHeader{Revision: revision}
	a.complete(h)
	return h
}

// complete sets the fields of a header that the state machine does not know.
func (a *API) complete(h *pb.ResponseHeader) {
	h.ClusterId, h.MemberId, h.RaftTerm = a.o.ClusterID, a.o.MemberID, a.o.Store.Term()
}
