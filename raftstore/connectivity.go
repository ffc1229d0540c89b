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

	moments "github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// A leader that does not reach a member looks every connectivityPause for a voter that reaches more members than it
// does: a link may be cut long after another member was lost. After each transfer that pause is twice as long as after
// the one before, up to mostConnectivityPause.
const connectivityPause, mostConnectivityPause = 2 * time.Second, time.Minute

// connectivity is what a leader keeps between two searches for a voter that reaches more members.
type connectivity struct {
	next  time.Time
	pause time.Duration
}

// reachReply has the ids of the members that a server reaches, itself among them.
type reachReply struct {
	Reached []raft.ServerID
	// Unfit says that it could not lead: its disk is full, or it led of late and got nothing done. Clients are served
	// there all the same.
	Unfit bool `json:",omitempty"`
}

// reachRequest is what is asked of a server that could lead.
type reachRequest struct {
	// Majority says that a majority of the voters is enough: the answer does not wait for the rest.
	Majority bool `json:",omitempty"`
}

// reached asks all other members for their terms, and returns those that answered in time, and this server. One whose
// disk is stalled does not answer. It returns early once enough, if it is not nil, says so.
func (p *peers) reached(ctx context.Context, enough func([]raft.ServerID) bool) []raft.ServerID {
	ctx, cancel := context.WithTimeout(ctx, 2*p.opts.ElectionTimeout)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	out := []raft.ServerID{p.id}
	for _, server := range p.raft.GetConfiguration().Configuration().Servers {
		if server.ID == p.id {
			continue
		}
		asking.Go(func() {
			if p.askTerm(ctx, server) > 0 {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, server.ID)
				if enough != nil && enough(out) {
					cancel()
				}
			}
		})
	}
	asking.Wait()
	return out
}

// serveReach answers a leader that looks for a voter that reaches more members, and a server that does not hear the
// leader. One whose disk stalls would serve neither. A leader that asks for a majority has it store something, too. One
// that made way a moment ago would have to do so again, but what kept its entries back may be over.
func (e *election) serveReach(ctx context.Context, q reachRequest) (reachReply, error) {
	if e.dir.Stalled() > stalledAfter && !q.Majority {
		return reachReply{}, errDiskStalled
	}
	made := e.aside.Load()
	unfit := errors.Is(e.admit(), rpctypes.ErrGRPCNoSpace) || made != nil && time.Since(*made) < mostConnectivityPause
	var enough func([]raft.ServerID) bool
	if voters := votersOf(e.raft.GetConfiguration().Configuration().Servers); q.Majority {
		enough = func(reached []raft.ServerID) bool { return majorityReached(voters, reached) }
	}
	return reachReply{Reached: e.reached(ctx, enough), Unfit: unfit}, nil
}

// majorityReached says whether a majority of the voters is among those reached.
func majorityReached(voters []raft.Server, reached []raft.ServerID) bool {
	stores := storing(func(id raft.ServerID) bool { return slices.Contains(reached, id) })
	return stores.majorityOf(voters)
}

// transferToConnected transfers the leadership to a voter that reaches more members than this leader. A member that the
// leader does not reach has no leader for as long as the link is cut, whichever server else reaches it, and its clients
// have no API. A transfer always goes to a server that reaches more, so it cannot go round.
func (s *steward) transferToConnected(ctx context.Context, c *connectivity) {
	servers := s.raft.GetConfiguration().Configuration().Servers
	if !slices.ContainsFunc(servers, func(m raft.Server) bool { return m.ID != s.id && !s.responsive(m.ID, healthyWithin) }) {
		*c = connectivity{}
		return
	}
	if time.Now().Before(c.next) {
		return
	}
	c.next = time.Now().Add(connectivityPause)
	own := s.reached(ctx, nil)
	best, most := s.mostConnected(ctx, servers, own)
	if len(most) <= len(own) {
		return
	}
	// The member may be back, and the other server may only have connected a moment earlier.
	if !moments.Sleep(ctx, peer.ReconnectsWithin) {
		return
	}
	if len(s.reached(ctx, nil)) >= len(most) {
		return
	}
	c.pause = min(max(2*c.pause, connectivityPause), mostConnectivityPause)
	c.next = time.Now().Add(c.pause)
	s.log.Warn("another server reaches more members of the store's cluster: transferring the leadership", "to", best,
		"reaches", most, "this one", own)
	if err := transferTo(ctx, s.replica, s, memberID(string(best))); err != nil && ctx.Err() == nil {
		s.log.Warn("could not transfer the leadership", "to", best, "err", err)
	}
}

// mostConnected returns the voter that reaches most members, among those that this server reaches and that reach a
// majority of the voters.
func (s *steward) mostConnected(
	ctx context.Context, servers []raft.Server, reached []raft.ServerID,
) (best raft.ServerID, most []raft.ServerID) {
	ctx, cancel := context.WithTimeout(ctx, 4*s.opts.ElectionTimeout) // twice what each of them takes
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	voters := votersOf(servers)
	for _, server := range voters {
		if server.ID == s.id || !slices.Contains(reached, server.ID) {
			continue
		}
		asking.Go(func() {
			answer, err := callAt[reachReply](ctx, s.Call, string(server.Address), callReach, reachRequest{})
			if err != nil || answer.Unfit {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if majorityReached(voters, answer.Reached) && len(answer.Reached) > len(most) {
				best, most = server.ID, answer.Reached
			}
		})
	}
	asking.Wait()
	return best, most
}

// reachingMajority asks voters whom they reach, and calls found for each that answers and reaches a majority of all
// voters. One that reaches a majority answers at once, unless it is of an older version.
func (s *steward) reachingMajority(ctx context.Context, of []raft.Server, found func(server raft.Server, fit bool)) {
	ctx, cancel := context.WithTimeout(ctx, 4*s.opts.ElectionTimeout) // twice what each of them takes
	defer cancel()
	voters := votersOf(s.raft.GetConfiguration().Configuration().Servers)
	var asking sync.WaitGroup
	for _, server := range of {
		asking.Go(func() {
			answer, err := callAt[reachReply](ctx, s.Call, string(server.Address), callReach, reachRequest{Majority: true})
			if err == nil && majorityReached(voters, answer.Reached) {
				found(server, !answer.Unfit)
			}
		})
	}
	asking.Wait()
}

// reportedLeader is what a server without a leader knows of the leader that others have.
type reportedLeader struct {
	address string // of the leader, or of a server that reaches it; "" when that was said once
	removed bool   // they do not count this server
}

// noteCutOff notes that another server hears a leader that this one does not. The leader may transfer its leadership to
// a server that this one hears, so that it is believed from the second time on; and only if that server reaches the
// leader now: one that knows of a leader may be as cut off.
func (ms *membership) noteCutOff(ctx context.Context, informed infoReply) {
	i := slices.IndexFunc(informed.Members, func(m raft.Server) bool { return string(m.ID) == informed.ID })
	leader := slices.IndexFunc(informed.Members, func(m raft.Server) bool { return string(m.Address) == informed.Leader })
	before := ms.leader.without.Load()
	if before == nil || before.removed || leader < 0 {
		ms.leader.without.Store(&reportedLeader{})
		return
	}
	address := string(informed.Members[i].Address)
	answer, err := callAt[reachReply](ctx, ms.Call, address, callReach, reachRequest{})
	if err != nil || !slices.Contains(answer.Reached, informed.Members[leader].ID) || ms.leader.hasLeader() {
		ms.leader.without.Store(nil)
		return
	}
	ms.leader.without.Store(&reportedLeader{address: dialAddress(raft.ServerAddress(address))})
	if ms.leader.hasLeader() { // since just now
		ms.leader.without.Store(nil)
		return
	}
	if before.address == "" {
		ms.log.Warn(
			"this server does not hear the store's leader, which another server reaches. Nothing is lost; check the network between the two",
			"leader", dialAddress(raft.ServerAddress(informed.Leader)), "reached by", informed.ID)
	}
}

// ReachedBy asks the members that answer this server which others they reach, and returns by name who reaches those
// that do not.
func (c *Cluster) ReachedBy(ctx context.Context, states []MemberState) map[string][]string {
	silent, names := map[raft.ServerID]string{}, map[string][]string{}
	for _, m := range states {
		if !m.Answers {
			silent[raft.ServerID(m.RaftID)] = m.Name
		}
	}
	if len(silent) == 0 {
		return nil
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, m := range states {
		if m.Self || !m.Answers {
			continue
		}
		asking.Go(func() {
			address := string(raftAddress(raft.ServerID(m.RaftID), m.Address))
			answer, err := callAt[reachReply](ctx, c.replication.Call, address, callReach, reachRequest{})
			if err != nil {
				return // it is left out
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range answer.Reached {
				if name := silent[id]; name != "" {
					names[name] = append(names[name], m.Name)
				}
			}
		})
	}
	asking.Wait()
	return names
}
