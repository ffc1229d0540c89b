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

// API returns etcd's API of this store for calls in this process.
func (s *Store) API() *etcdapi.API { return s.api }

// Client returns a new etcd client that calls the store directly. Its Close ends only its own watches. It has no
// Cluster and no Auth.
//
// Keys and values in answers are the store's own memory: read only.
func (s *Store) Client() *kubernetes.Client { return etcdclient.New(s.api) }

// ServeGRPC serves etcd's v3 API on the listener until ctx or the store ends, and then closes the listener. It has no
// authentication: any client that can connect may do everything. So the listener should be a unix socket that only its
// users can open.
func (s *Store) ServeGRPC(ctx context.Context, l net.Listener) error {
	return etcdgrpc.Serve(ctx, s.api, l)
}

func (s *Store) newAPI() *etcdapi.API {
	r := s.replica
	return etcdapi.New(etcdapi.Options{
		Store: etcdStore{s, s.leases, etcdCluster{s.cluster}}, Watches: s.watches,
		Closing: r.ctx, Ready: r.ready, ClusterID: r.clusterID, MemberID: r.memberID,
		MaxRequestBytes: r.opts.MaxRequestBytes, MaxTxnOps: r.opts.MaxTxnOps,
		Counters: r.opts.Counters, RequestTimeout: r.opts.RequestTimeout,
	})
}

// View returns the newest state that this server has applied.
func (s *Store) View() *mvcc.View { return s.replica.fsm.view() }

// Term returns this server's Raft term.
func (s *Store) Term() uint64 { return s.replica.raft.CurrentTerm() }

// etcdStore implements etcdapi.Store.
type etcdStore struct {
	*Store
	*leases
	etcdCluster
}

var _ etcdapi.Store = etcdStore{}

// etcdCluster implements the methods of etcdapi.Store that concern the cluster.
type etcdCluster struct{ *Cluster }

// EtcdStatus describes this server in the terms of etcd's API.
func (c etcdCluster) EtcdStatus() etcdapi.ServerStatus {
	out := etcdapi.ServerStatus{
		Committed: c.raft.CommitIndex(), Applied: c.raft.AppliedIndex(), Quota: c.quota.bytes(),
	}
	if lead, _ := c.leader.get(); lead.exists() {
		out.Leader = memberID(string(lead.ID))
	}
	for _, m := range c.Members() {
		out.Learner = out.Learner || m.Self && !m.Voter
	}
	if err := c.admit(); err != nil {
		out.Refusing = append(out.Refusing, err.Error())
		out.NoSpace = errors.Is(err, rpctypes.ErrGRPCNoSpace)
	}
	if c.quota.refusesWrites() {
		out.Refusing = append(out.Refusing, "raftstore: the quota is used up: writes that do not fit in are refused")
		out.NoSpace = true
	}
	return out
}

// EtcdMembers lists the servers in the terms of etcd's API.
func (c etcdCluster) EtcdMembers() []*pb.Member {
	var out []*pb.Member
	for _, m := range c.Members() {
		out = append(out, &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: []string{"raft://" + m.Address}, IsLearner: !m.Voter})
	}
	return out
}

// RemoveMemberID removes the server with this member id from the cluster.
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

// LeaderPresence says whether a leader is known now. The returned context ends when no leader has been known for a
// while.
func (c etcdCluster) LeaderPresence() (known bool, present context.Context) {
	return c.leader.presence()
}

// AwaitLeader returns when a leader is known, or an error when ctx is done or the store closes.
func (c etcdCluster) AwaitLeader(ctx context.Context) error {
	_, _, err := c.leader.await(ctx)
	return err
}
