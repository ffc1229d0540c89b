// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// connectivityPause is the interval at which a leader that cannot reach a member searches for a voter that reaches more
// members than itself. It searches repeatedly, since a link may be cut long after another member was lost. Each
// transfer doubles the pause, up to maxConnectivityPause.
const connectivityPause, maxConnectivityPause = 2 * time.Second, time.Minute

// connectivity is when a leader may next search for a voter that reaches more members, and the pause after that search.
type connectivity struct {
	nextSearch  time.Time
	searchPause time.Duration
}

// reachReply has the ids of the members that a server reaches, including its own.
type reachReply struct {
	Reached []raft.ServerID
	// Unfit says that the server could not lead: its disk is full, it led recently as a stuck leader and made way, or
	// its clock is off. It still serves clients.
	Unfit bool `json:",omitempty"`
}

// reachRequest asks a server which members it reaches.
type reachRequest struct {
	// Majority makes the server answer as soon as it reaches a majority of the voters, without waiting for the rest.
	Majority bool `json:",omitempty"`
}

// reachedMembers asks all other members for their terms. It returns those that answered in time, and this server. A
// server whose disk is stalled does not answer. If enough is not nil, it returns as soon as enough returns true.
func (p *peers) reachedMembers(ctx context.Context, enough func([]raft.ServerID) bool) []raft.ServerID {
	ctx, cancel := context.WithTimeout(ctx, 2*p.opts.ElectionTimeout)
	defer cancel()
	others := p.withoutSelf(p.raft.GetConfiguration().Configuration().Servers)
	answered := askMembers(ctx, others, func(ctx context.Context, m raft.Server) (raft.ServerID, bool) {
		return m.ID, p.fetchTerm(ctx, m) > 0
	}, func(ids []raft.ServerID) bool { return enough != nil && enough(append(ids, p.id)) })
	return append(answered, p.id)
}

// serveReach answers a leader that searches for a voter that reaches more members, and a server that does not hear the
// leader. A server with a stalled disk is of no use to either, and returns an error. It answers a leader that asks for
// a majority all the same, since that leader also probes its storage. A server that made way as leader a moment ago is
// unfit: it would have to make way again, unless the cause has gone.
func (e *elections) serveReach(ctx context.Context, q reachRequest) (reachReply, error) {
	if e.dir.Stalled() > stalledAfter && !q.Majority {
		return reachReply{}, errDiskStalled
	}
	made := e.steppingDownUntil.Load()
	unfit := errors.Is(e.admit(), rpctypes.ErrGRPCNoSpace) || made != nil && time.Since(*made) < maxConnectivityPause || e.clockOff.isOff()
	var enough func([]raft.ServerID) bool
	if voters := e.voters(); q.Majority {
		enough = func(reached []raft.ServerID) bool { return majorityReached(voters, reached) }
	}
	return reachReply{Reached: e.reachedMembers(ctx, enough), Unfit: unfit}, nil
}

// majorityReached says whether a majority of the voters is among those reached.
func majorityReached(voters []raft.Server, reached []raft.ServerID) bool {
	stores := storing(func(id raft.ServerID) bool { return slices.Contains(reached, id) })
	return stores.majorityOf(voters)
}

// transferToConnected transfers the leadership to a voter that reaches more members than this leader. A member that the
// leader cannot reach has no leader until the link is back, even if other servers reach it, and its clients have no
// API. Each transfer goes to a server that reaches more members, so transfers cannot circle.
func (s *steward) transferToConnected(ctx context.Context, c *connectivity) {
	servers := s.raft.GetConfiguration().Configuration().Servers
	if !slices.ContainsFunc(servers, func(m raft.Server) bool { return m.ID != s.id && !s.responsive(m.ID, healthyWithin) }) {
		*c = connectivity{}
		return
	}
	if time.Now().Before(c.nextSearch) {
		return
	}
	c.nextSearch = time.Now().Add(connectivityPause)
	own := s.reachedMembers(ctx, nil)
	best, most := s.mostConnected(ctx, servers, own)
	if len(most) <= len(own) {
		return
	}
	// The member may be reachable again, and the other server may only have connected a moment earlier.
	if !timers.Sleep(ctx, peer.ReconnectsWithin) {
		return
	}
	if len(s.reachedMembers(ctx, nil)) >= len(most) {
		return
	}
	c.searchPause = min(max(2*c.searchPause, connectivityPause), maxConnectivityPause)
	c.nextSearch = time.Now().Add(c.searchPause)
	s.log.Warn("another server reaches more members of the store's cluster: transferring the leadership", "to", best,
		"reaches", most, "this one", own)
	if err := transferTo(ctx, s.replica, s, memberID(string(best))); err != nil && ctx.Err() == nil {
		s.log.Warn("could not transfer the leadership", "to", best, "err", err)
	}
}

// mostConnected returns the voter that reaches most members. It considers the voters that this server reaches and that
// reach a majority of the voters.
func (s *steward) mostConnected(
	ctx context.Context, servers []raft.Server, reached []raft.ServerID,
) (best raft.ServerID, most []raft.ServerID) {
	unreached := func(m raft.Server) bool { return !slices.Contains(reached, m.ID) }
	s.askReach(ctx, slices.DeleteFunc(s.withoutSelf(votersOf(servers)), unreached), reachRequest{}, func(m raft.Server, a reachReply) {
		if !a.Unfit && len(a.Reached) > len(most) {
			best, most = m.ID, a.Reached
		}
	})
	return best, most
}

// reachingMajority asks the voters in of which members they reach. It calls found for each that answers and reaches a
// majority of all voters. Such a voter answers at once, unless it is of an older version.
func (s *steward) reachingMajority(ctx context.Context, of []raft.Server, found func(server raft.Server, fit bool)) {
	s.askReach(ctx, of, reachRequest{Majority: true}, func(m raft.Server, a reachReply) { found(m, !a.Unfit) })
}

// askReach asks the servers in of which members they reach. It calls found for each that answers and reaches a majority
// of all voters, for one after the other.
func (s *steward) askReach(ctx context.Context, of []raft.Server, q reachRequest, found func(raft.Server, reachReply)) {
	ctx, cancel := context.WithTimeout(ctx, 4*s.opts.ElectionTimeout) // twice the timeout of reachedMembers, which each of them calls
	defer cancel()
	voters := s.voters()
	var mu sync.Mutex
	askMembers(ctx, of, func(ctx context.Context, m raft.Server) (none struct{}, ok bool) {
		answer, err := callAt[reachReply](ctx, s.Call, string(m.Address), callReach, q)
		if err == nil && majorityReached(voters, answer.Reached) {
			mu.Lock()
			defer mu.Unlock()
			found(m, answer)
		}
		return
	}, nil)
}

// reportedLeader is what other servers reported of their leader to this server, which has no leader.
type reportedLeader struct {
	address string // of the leader, or of a server that reaches the leader; "" after the first report
	removed bool   // the others do not count this server as a member
}

// checkCutOff notes that another server hears a leader that this one does not. The first report is only remembered,
// since the leader may be about to transfer its leadership to a server that this one hears. From the second report on,
// the other server counts if it reaches the leader now: a server that only knows of a leader may be as cut off as this
// one.
func (ms *membership) checkCutOff(ctx context.Context, informed infoReply) {
	i := slices.IndexFunc(informed.Members, func(m raft.Server) bool { return string(m.ID) == informed.ID })
	leader := slices.IndexFunc(informed.Members, func(m raft.Server) bool { return string(m.Address) == informed.Leader })
	before := ms.leader.reportedLeader.Load()
	if before == nil || before.removed || leader < 0 {
		ms.leader.reportedLeader.Store(&reportedLeader{})
		return
	}
	address := string(informed.Members[i].Address)
	answer, err := callAt[reachReply](ctx, ms.Call, address, callReach, reachRequest{})
	if err != nil || !slices.Contains(answer.Reached, informed.Members[leader].ID) || ms.leader.hasLeader() {
		ms.leader.reportedLeader.Store(nil)
		return
	}
	ms.leader.reportedLeader.Store(&reportedLeader{address: dialAddress(raft.ServerAddress(address))})
	if ms.leader.hasLeader() { // a leader has been heard in the meantime
		ms.leader.reportedLeader.Store(nil)
		return
	}
	if before.address == "" {
		ms.log.Warn(
			"this server receives nothing from the store's leader, which another server reaches. Nothing is lost; check the network to the leader",
			"leader", dialAddress(raft.ServerAddress(informed.Leader)), "reached by", informed.ID)
	}
}

// ReachedBy asks the members that answer this server which others they reach. For the name of each member that does not
// answer this server, it returns the names of the members that reach it.
func (c *Cluster) ReachedBy(ctx context.Context, states []MemberState) map[string][]string {
	unresponsive, names := map[raft.ServerID]string{}, map[string][]string{}
	for _, m := range states {
		if !m.Answers {
			unresponsive[raft.ServerID(m.RaftID)] = m.Name
		}
	}
	if len(unresponsive) == 0 {
		return nil
	}
	type reach struct {
		by string
		of []raft.ServerID
	}
	replies := askMembers(ctx, states, func(ctx context.Context, m MemberState) (reach, bool) {
		if m.Self || !m.Answers {
			return reach{}, false
		}
		address := string(raftAddress(raft.ServerID(m.RaftID), m.Address))
		answer, err := callAt[reachReply](ctx, c.replication.Call, address, callReach, reachRequest{})
		return reach{m.Name, answer.Reached}, err == nil
	}, nil)
	for _, r := range replies {
		for _, id := range r.of {
			if name := unresponsive[id]; name != "" {
				names[name] = append(names[name], r.by)
			}
		}
	}
	return names
}
