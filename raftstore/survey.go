// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// A MemberState is the state of a member, as the member reports it to Survey.
type MemberState struct {
	Member
	// Answers says that the member answered this server. If it did not, the other fields are zero.
	Answers bool
	// Applied is the index of the newest log entry that the member has applied. Lag is by how many entries it is behind
	// the newest entry that any member has applied, or that this server knows to be committed.
	Applied, Lag uint64
	// Version and Hostname are those of the member's Options.
	Version, Hostname string
	Full              bool // the member's disk is full
	Stalled           bool // the member's disk is stalled: it answers, but counts for no majority
	// Quota is how many bytes of keys and history the member's memory allows, 0 if it does not say so. ClusterQuota is
	// how many the cluster may have, if the member leads.
	Quota, ClusterQuota int64
	Refusing            metrics.Refusal // why the member refuses writes
	// ClockAhead is how far the member's clock is ahead of this server's, within ClockWithin. ClockWithin is 0 if the
	// clocks were not compared: the member is of an older version, or slow.
	ClockAhead, ClockWithin time.Duration
}

// Survey asks every member for its state. It takes as long as the slowest answer, which is bounded, and needs no
// leader.
func (c *Cluster) Survey(ctx context.Context) []MemberState {
	members := c.Members()
	states := make([]MemberState, len(members))
	asked := make([]*MemberState, len(members))
	for i, m := range members {
		states[i].Member, asked[i] = m, &states[i]
	}
	askMembers(ctx, asked, func(ctx context.Context, m *MemberState) (none struct{}, ok bool) {
		if m.Self {
			lead, _ := c.leader.get()
			m.setFrom(c.quota.info(lead))
			return
		}
		server := raft.Server{ID: raft.ServerID(m.RaftID), Address: raftAddress(raft.ServerID(m.RaftID), m.Address)}
		began := time.Now()
		c.replication.CompareClocks(string(server.Address))
		if info, err := c.requestInfo(ctx, c.replication.Call, server); err == nil {
			m.setFrom(info)
		}
		if o, ok := c.replication.Offset(server.ID); ok && !o.At.Before(began) {
			m.ClockAhead, m.ClockWithin = o.By, o.Within
		}
		return
	}, nil)
	newest := c.raft.CommitIndex()
	for _, m := range states {
		newest = max(newest, m.Applied)
	}
	for i := range states {
		if states[i].Answers {
			states[i].Lag = newest - states[i].Applied
		}
	}
	return states
}

func (m *MemberState) setFrom(a infoReply) {
	m.Answers, m.Applied, m.Version, m.Hostname, m.Full, m.Stalled = true, a.Applied, a.Version, a.Hostname, a.Full, a.Stalled
	m.Quota, m.ClusterQuota, m.Refusing = a.Quota, a.ClusterQuota, a.Refusing
}

// info returns this server's state. lead is the leader as this server knows it.
func (q *quota) info(lead leader) infoReply {
	out := infoReply{
		Cluster: q.dir.Identity.Cluster, ID: string(q.id), Leader: string(lead.Address), Version: q.opts.Version, Hostname: q.opts.Hostname,
		Applied: q.raft.AppliedIndex(), Full: errors.Is(q.replica.admit(), rpctypes.ErrGRPCNoSpace),
		Stalled: q.dir.Stalled() > stalledAfter, Members: q.raft.GetConfiguration().Configuration().Servers,
		Quota: q.opts.QuotaBytes, Newest: level.Field(q.opts.newest), Refusing: q.reason(),
	}
	if lead.Self {
		out.ClusterQuota = q.bytes()
	}
	return out
}

type promoteCall struct{ Name string }

// PromoteMember gives a member a vote at once, in place of a voter that does not store. Without this call, the leader
// does so when the voter has not stored for a minute. name is the member's name or raft id.
//
// The call is refused unless the member stores. It is also refused if all voters store and their number is odd: the
// number would become even, and an even number survives no more failures than the odd one before it.
func (c *Cluster) PromoteMember(ctx context.Context, name string) error {
	_, err := atLeader(ctx, c.leaderRoute, callPromote, promoteCall{name}, c.servePromote)
	return err
}

func (c *Cluster) servePromote(ctx context.Context, r promoteCall) (emptyReply, error) {
	if lead, _ := c.leadership.get(); !lead.Leader {
		return emptyReply{}, errNotLeader
	}
	members, at := c.dir.Log.Members()
	var chosen raft.Server // the newest member of that name: the directories of older ones are lost
	for _, server := range members.Servers {
		if r.Name == string(server.ID) || r.Name == disk.NodeOf(string(server.ID)) {
			chosen = server
		}
	}
	switch {
	case chosen.ID == "":
		return emptyReply{}, status.Errorf(codes.NotFound, "raftstore: there is no member %q", r.Name)
	case chosen.Suffrage == raft.Voter:
		return emptyReply{}, status.Errorf(codes.FailedPrecondition, "raftstore: %q has a vote already", r.Name)
	}
	voters := votersOf(members.Servers)
	after := append(slices.Clone(voters), chosen)
	stores := c.replication.storageProbe(ctx, nil)
	switch {
	case c.raft.State() != raft.Leader: // only a leader learns which members store
		return emptyReply{}, errNotLeader
	case stores.count(voters) == len(voters) && len(voters)%2 == 1:
		return emptyReply{}, status.Errorf(codes.FailedPrecondition,
			"raftstore: all %d voters answer and can store. One more would make their number even, "+
				"which survives no more failures. %q gets a vote automatically when another server joins, or when a voter is lost",
			len(voters), r.Name)
	case !stores(chosen.ID):
		return emptyReply{}, status.Errorf(codes.FailedPrecondition,
			"raftstore: %q does not answer, cannot store, or is not up to date yet. Nothing was changed",
			r.Name)
	case !stores.majorityOf(after):
		return emptyReply{}, status.Errorf(codes.FailedPrecondition,
			"raftstore: with %q there would be %d voters, of which only %d can store at the moment, so the store would lose its quorum. "+
				"Nothing was changed", r.Name, len(after), stores.count(after))
	}
	// The steward takes the vote of a voter that is lost: the number does not stay even.
	if err := c.await(c.raft.AddVoter(chosen.ID, chosen.Address, at, 0)); err != nil {
		return emptyReply{}, callError(err)
	}
	c.log.Info("a server of the store's cluster gets a vote, on request", "member", chosen.ID)
	return emptyReply{}, nil
}
