// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// A Member is a server of the cluster, as far as this server knows.
type Member struct {
	// ID is the member's number in etcd's protocol.
	ID uint64
	// Name is the server's name. RaftID is the name of its directory in raft: a server whose disk was replaced comes
	// back as another member.
	Name, RaftID string
	// Address is where other servers connect to this member.
	Address string
	// Voter says whether the member counts for majorities. Non-voters store everything too, and become voters when they
	// are needed.
	Voter  bool
	Leader bool
	Self   bool
	// Newest is the newest level that the member's program knows, as the member announced it last.
	Newest int
	// Contact is the last time at which this server heard the member. It is zero if it never did, and for this server
	// itself.
	Contact time.Time
}

// Cluster gives access to the store's servers: it lists and removes them, gives them votes, and transfers the
// leadership.
type Cluster struct {
	leaderRoute
	leadership *leadership
	quota      *quota
	writer     *writer
}

// Cluster gives access to the store's servers.
func (s *Store) Cluster() *Cluster { return s.cluster }

// Members lists the cluster's servers, as far as this server knows.
func (c *Cluster) Members() []Member {
	lead, _ := c.leader.get()
	var members []Member
	for _, server := range c.raft.GetConfiguration().Configuration().Servers {
		m := Member{
			ID: memberID(string(server.ID)), Name: disk.NodeOf(string(server.ID)), RaftID: string(server.ID),
			Address: dialAddress(server.Address), Voter: server.Suffrage == raft.Voter,
			Leader: lead.exists() && server.ID == lead.ID, Self: server.ID == c.id, Newest: c.newestOf(server),
		}
		if !m.Self {
			m.Contact = c.replication.Contact(server.ID)
		}
		members = append(members, m)
	}
	return members
}

// CheckMembers says how raft's members differ from the newest that are in its log, "" if they do not. at is the index
// of the log entry with the newest members. Both may differ for a moment, while raft adds an entry. A difference that
// lasts would be a fault of the store: it would count wrong majorities.
func (c *Cluster) CheckMembers() (problem string, at uint64) {
	want, at := c.dir.Log.Members()
	have := c.raft.GetConfiguration().Configuration()
	if slices.Equal(want.Servers, have.Servers) {
		return "", at
	}
	return fmt.Sprintf("entry %d has %v, raft has %v (its log ends with entry %d, it has applied %d)",
		at, want.Servers, have.Servers, c.raft.LastIndex(), c.raft.AppliedIndex()), at
}

// raftAddress returns a member's address for raft. It has the member's random part added, since raft refuses two
// members at one address: a server whose disk was replaced comes back as another member while its former member may
// still have a vote.
func raftAddress(id raft.ServerID, address string) raft.ServerAddress {
	return raft.ServerAddress(address + "#" + strings.TrimPrefix(string(id), disk.NodeOf(string(id))+"."))
}

// dialAddress returns the address to dial for one of raft's addresses.
func dialAddress(a raft.ServerAddress) string {
	address, _, _ := strings.Cut(string(a), "#")
	return address
}

type removeCall struct{ Name string }

type emptyReply struct{}

// RemoveMember removes a server from the cluster, by its name or raft id. The server cannot join again with its present
// directory.
func (c *Cluster) RemoveMember(ctx context.Context, name string) error {
	_, err := atLeader(ctx, c.leaderRoute, callRemove, removeCall{name}, c.serveRemove)
	return err
}

func (c *Cluster) serveRemove(ctx context.Context, r removeCall) (emptyReply, error) {
	for removed := false; ctx.Err() == nil; {
		if lead, _ := c.leadership.get(); !lead.Leader {
			return emptyReply{}, errNotLeader
		}
		members, at := c.dir.Log.Members()
		i := slices.IndexFunc(members.Servers, func(server raft.Server) bool {
			return r.Name == string(server.ID) || r.Name == disk.NodeOf(string(server.ID))
		})
		if i < 0 { // it may be removed by an entry that is not committed, and that the next leader may not have
			if err := c.barrier(ctx); err != nil {
				return emptyReply{}, callError(err)
			}
		}
		if i < 0 && removed {
			return emptyReply{}, nil
		}
		if i < 0 {
			return emptyReply{}, status.Errorf(codes.NotFound, "raftstore: there is no member %q", r.Name)
		}
		// Several members may have one name.
		done, err := c.removeOne(ctx, members.Servers, members.Servers[i], at)
		if err != nil {
			return emptyReply{}, callError(err)
		}
		removed = removed || done
	}
	return emptyReply{}, contextError(ctx)
}

// removeOne removes the server v, and reports whether it did. at is the index of the log entry that set members. If the
// members have changed since, it returns false and no error.
func (c *Cluster) removeOne(ctx context.Context, members []raft.Server, v raft.Server, at uint64) (bool, error) {
	if v.ID == c.id && isOnlyVoter(members, v.ID) {
		if err := c.replication.transferVote(ctx, members, at); err != nil {
			return false, err
		}
		return false, errNotLeader // the next leader removes it
	}
	if v.Suffrage == raft.Voter {
		if err := c.checkRemovable(ctx, members, v.ID); err != nil {
			return false, err
		}
	}
	if v.ID == c.id {
		// The next leader removes this server: if a leader removes itself, its clients wait for an election.
		if err := c.TransferLeadership(ctx); err != nil {
			return false, err
		}
		return false, errNotLeader
	}
	if err := c.await(c.raft.RemoveServer(v.ID, at, 0)); err != nil {
		if _, now := c.dir.Log.Members(); now != at {
			return false, nil // the members have changed: the caller starts again
		}
		return false, err
	}
	c.log.Info("removed a server from the store's cluster", "member", v.ID)
	c.replication.CloseCalls(string(v.Address))
	return true, nil
}

// isOnlyVoter says whether a server needs no other vote to be elected.
func isOnlyVoter(members []raft.Server, id raft.ServerID) bool {
	voters := votersOf(members)
	return len(voters) == 1 && voters[0].ID == id
}

func votersOf(members []raft.Server) []raft.Server {
	return slices.DeleteFunc(slices.Clone(members), func(m raft.Server) bool { return m.Suffrage != raft.Voter })
}

// checkRemovable returns an error unless a majority of the other voters stores now. etcd has the same rule (server.go,
// mayRemoveMember: strict reconfiguration check), but counts the servers that are connected. A server with a stalled
// disk stays connected.
func (c *Cluster) checkRemovable(ctx context.Context, members []raft.Server, id raft.ServerID) error {
	left := slices.DeleteFunc(votersOf(members), func(m raft.Server) bool { return m.ID == id })
	stores := c.replication.storageProbe(ctx, func(stores storing) bool { return stores.majorityOf(left) })
	switch {
	case stores.majorityOf(left):
		return nil
	case c.raft.State() != raft.Leader: // only a leader learns which members store
		return errNotLeader
	}
	return status.Errorf(codes.FailedPrecondition,
		"raftstore: without %q only %d of the %d remaining voters can store at the moment, so the store would lose its quorum. "+
			"Nothing was changed. Bring the other servers back first, or remove those that are lost", id, stores.count(left), len(left))
}

// responsive says whether another member has answered within a given time before now.
func (p *peers) responsive(id raft.ServerID, within time.Duration) bool {
	return time.Since(p.Contact(id)) < within
}

// infoCall asks a server for its state. Earlier versions ignore its fields.
type infoCall struct {
	ClusterQuota int64 `json:",omitempty"` // the cluster's quota in bytes, from the leader
}

type infoReply struct {
	Cluster, ID string
	Leader      string // the address of the leader, if there is one that the server can use
	Members     []raft.Server
	Applied     uint64 // raft index
	Full        bool   // the server's disk is full
	Stalled     bool   `json:",omitempty"` // the server's disk is stalled
	// Version and Hostname are those of the server's Options.
	Version, Hostname string
	Quota             int64 `json:",omitempty"` // Options.QuotaBytes; 0 from older servers
	Newest            int   `json:",omitempty"` // the newest level that the server's program knows; 0 for level 1
	// ClusterQuota is the cluster's quota in bytes, from a server that leads.
	ClusterQuota int64           `json:",omitempty"`
	Refusing     metrics.Refusal `json:",omitempty"` // why the server refuses writes
}

func (ms *membership) serveInfo(_ context.Context, request infoCall) (infoReply, error) {
	lead, _ := ms.leader.get()
	if request.ClusterQuota > 0 && !lead.Self {
		ms.quota.cluster.Store(request.ClusterQuota)
	}
	if !ms.leader.hasLeader() {
		lead = leader{}
	}
	return ms.quota.info(lead), nil
}
