// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"net"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/etcdclient"
	"github.com/coracle-k8s/coracle/raftstore/etcdgrpc"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

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
	r := s.replica
	return etcdapi.New(etcdapi.Options{
		Store: etcdStore{s, s.leases, etcdCluster{s.cluster, s.quota}}, Watches: s.watches,
		Closing: r.ctx, Ready: r.ready, ClusterID: r.clusterID, MemberID: r.memberID,
		MaxRequestBytes: r.opts.MaxRequestBytes, MaxTxnOps: r.opts.MaxTxnOps,
		Counters: r.opts.Counters, RequestTimeout: r.opts.RequestTimeout,
	})
}

// View is the newest state that this server has applied.
func (s *Store) View() *mvcc.View { return s.replica.fsm.view() }

// Term is this server's term.
func (s *Store) Term() uint64 { return s.replica.raft.CurrentTerm() }

// etcdStore is a store as etcd's API needs it.
type etcdStore struct {
	*Store
	*leases
	etcdCluster
}

var _ etcdapi.Store = etcdStore{}

// etcdCluster is a cluster as etcd's API has it.
type etcdCluster struct {
	*Cluster
	quota *quota
}

// EtcdStatus describes this server as etcd's API does.
func (c etcdCluster) EtcdStatus() etcdapi.ServerStatus {
	out := etcdapi.ServerStatus{
		Committed: c.raft.CommitIndex(), Applied: c.raft.AppliedIndex(), Quota: c.opts.QuotaBytes,
	}
	if lead, _ := c.leader.get(); lead.known() {
		out.Leader = memberID(string(lead.ID))
	}
	for _, m := range c.Members() {
		out.Learner = out.Learner || m.Self && !m.Voter
	}
	if err := c.admit(); err != nil {
		out.Refusing = append(out.Refusing, err.Error())
		out.NoSpace = errors.Is(err, rpctypes.ErrGRPCNoSpace)
	}
	if c.quota.over() {
		out.Refusing = append(out.Refusing, "raftstore: the quota is used up: writes that add anything are refused")
		out.NoSpace = true
	}
	return out
}

// EtcdMembers lists the servers as etcd's API does.
func (c etcdCluster) EtcdMembers() []*pb.Member {
	var out []*pb.Member
	for _, m := range c.Members() {
		out = append(out, &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: []string{"raft://" + m.Address}, IsLearner: !m.Voter})
	}
	return out
}

// RemoveMemberID takes the server with this member id out of the cluster.
func (c etcdCluster) RemoveMemberID(ctx context.Context, id uint64) error {
	for _, m := range c.Members() {
		if m.ID == id {
			return c.RemoveMember(ctx, m.RaftID)
		}
	}
	return rpctypes.ErrGRPCMemberNotFound
}

// PromoteMemberID gives the server with this member id a vote, see PromoteMember.
func (c etcdCluster) PromoteMemberID(ctx context.Context, id uint64) error {
	for _, m := range c.Members() {
		if m.ID == id {
			return c.PromoteMember(ctx, m.RaftID)
		}
	}
	return rpctypes.ErrGRPCMemberNotFound
}

// LeaderPresence says whether a leader is known now. The context ends when there
// has been none for long.
func (c etcdCluster) LeaderPresence() (known bool, present context.Context) {
	return c.leader.presence()
}
