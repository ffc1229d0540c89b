// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"net"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/etcdclient"
	"github.com/coracle-k8s/coracle/raftstore/etcdgrpc"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

var _ etcdapi.Store = (*Store)(nil)

// API answers etcd's requests, without a connection.
func (s *Store) API() *etcdapi.API { return s.api }

// Client returns a new etcd client whose calls go straight into the store. Its
// Close ends its watches and nothing else. Cluster and Auth are not there.
//
// Keys and values in answers are the store's own memory: read only.
func (s *Store) Client() *kubernetes.Client { return etcdclient.New(s.api) }

// ServeGRPC serves etcd's v3 API on the listener until ctx or the store ends,
// and then closes it. It has no authentication of its own: who can connect may
// do everything, so give it a unix socket that only its users can open.
func (s *Store) ServeGRPC(ctx context.Context, l net.Listener) error {
	return etcdgrpc.Serve(ctx, s.api, l)
}

func (s *Store) newAPI() *etcdapi.API {
	return etcdapi.New(etcdapi.Options{
		Store: s, Watches: s.watches, Closing: s.ctx, Ready: s.ready, ClusterID: s.clusterID, MemberID: s.memberID,
		MaxRequestBytes: s.opts.MaxRequestBytes, MaxTxnOps: s.opts.MaxTxnOps, Counters: s.opts.Counters, RequestTimeout: s.opts.RequestTimeout,
	})
}

// View is the newest state that this server has applied.
func (s *Store) View() *mvcc.View { return s.fsm.view() }

// Term is this server's term.
func (s *Store) Term() uint64 { return s.raft.CurrentTerm() }

// EtcdStatus describes this server as etcd's API does.
func (s *Store) EtcdStatus() etcdapi.Status {
	out := etcdapi.Status{
		Committed: s.raft.CommitIndex(), Applied: s.raft.AppliedIndex(), Quota: s.opts.QuotaBytes,
	}
	if lead, _ := s.leader.get(); lead.known() {
		out.Leader = memberID(string(lead.ID))
	}
	for _, m := range s.Members() {
		out.Learner = out.Learner || m.Self && !m.Voter
	}
	if err := s.admit(); err != nil {
		out.Refusing = append(out.Refusing, err.Error())
		out.NoSpace = errors.Is(err, rpctypes.ErrGRPCNoSpace)
	}
	if s.overQuota() {
		out.Refusing = append(out.Refusing, "raftstore: the quota is used up: writes that add anything are refused")
		out.NoSpace = true
	}
	return out
}

// EtcdMembers lists the servers as etcd's API does.
func (s *Store) EtcdMembers() []*pb.Member {
	var out []*pb.Member
	for _, m := range s.Members() {
		out = append(out, &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: []string{"raft://" + m.Address}, IsLearner: !m.Voter})
	}
	return out
}

// RemoveMemberID takes the server with this member id out of the cluster.
func (s *Store) RemoveMemberID(ctx context.Context, id uint64) error {
	for _, m := range s.Members() {
		if m.ID == id {
			return s.RemoveMember(ctx, m.RaftID)
		}
	}
	return rpctypes.ErrGRPCMemberNotFound
}

// PromoteMemberID gives the server with this member id a vote, see PromoteMember.
func (s *Store) PromoteMemberID(ctx context.Context, id uint64) error {
	for _, m := range s.Members() {
		if m.ID == id {
			return s.PromoteMember(ctx, m.RaftID)
		}
	}
	return rpctypes.ErrGRPCMemberNotFound
}

// MoveLeader makes the voter with this member id lead; like etcd's, it is for
// the leader.
func (s *Store) MoveLeader(ctx context.Context, id uint64) error {
	if lead, _ := s.leadership.get(); !lead.Leader {
		return rpctypes.ErrGRPCNotLeader
	}
	if id == s.memberID {
		return nil
	}
	err := s.transferTo(ctx, id)
	if status.Code(err) == codes.NotFound {
		return rpctypes.ErrGRPCBadLeaderTransferee
	}
	return proposeErrorOrNil(ctx, err)
}

// LeaderPresence says whether a leader is known now. The context ends when there
// has been none for long.
func (s *Store) LeaderPresence() (known bool, present context.Context) { return s.leader.presence() }
