// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/voters"
)

const (
	// stewardTick is the interval at which the leader checks the members.
	stewardTick = time.Second
	// healthyWithin is how long after a member last stored it still counts as healthy.
	healthyWithin = 3 * time.Second
	// replaceAfter is how long a voter may store nothing before another server gets its vote.
	replaceAfter = time.Minute
	// probeAgainAfter is a pause after a storage probe. A server that was to be promoted, and did not store, is not
	// promoted in that time. If too few voters stored, no vote is changed in that time. Without the pause, an entry
	// would be written again and again for disks that take too long each time.
	probeAgainAfter = time.Minute
	// maxMissingEntries is how many entries a server may lack and still be promoted. It gets them during the promotion.
	maxMissingEntries = 64
	// fullFor is how long a leader refuses writes for lack of disk space before it transfers the leadership to a server
	// that may have space.
	fullFor = 3 * time.Second
)

// steward does what a leader does for the other servers. It assigns the votes. It transfers the leadership if its disk
// is full, or if another server reaches more members.
type steward struct {
	*peers
	quota *quota
	votes chan struct{} // capacity 1: held by the goroutine that changes votes, over all steps of a change
	links connectivity  // kept across terms, since a voter that was found to reach more may not keep the leadership
}

// observations are what a leader knows of the members in addition to what the transport knows.
type observations struct {
	byMember map[raft.ServerID]*observation
	failed   time.Time // the last storage probe in which too few voters stored for a change
}

// observation is what a leader knows of one member.
type observation struct {
	begunAt time.Time // when this leader began to observe the member; it may not have heard the member before
	failed  time.Time // the last storage probe that the member failed when it was to be promoted
}

// runSteward checks connectivity, disk space and votes while this server leads.
func (s *steward) runSteward(ctx context.Context) {
	known := &observations{byMember: make(map[raft.ServerID]*observation)}
	var full time.Time
	var space diskSpace
	var clocks time.Time    // until then it does not try again to hand over to a server whose clock is right
	defer s.quota.endTerm() // the next leader finds out by itself
	for {
		if !timers.Sleep(ctx, timers.Until(stewardTick)) {
			return
		}
		s.transferToRightClock(ctx, &clocks)
		s.transferToConnected(ctx, &s.links)
		s.checkDiskSpace(ctx, &space)
		switch {
		case !errors.Is(s.admit(), rpctypes.ErrGRPCNoSpace):
			full = time.Time{}
		case !s.othersVote():
		case full.IsZero():
			full = time.Now()
			continue
		case time.Since(full) <= fullFor:
			continue // no vote is changed: it might be taken from the server that has space
		default:
			s.transferToVoterWithSpace(ctx)
			full = time.Now() // it does not try again at once
		}
		s.settleVotes(ctx, known)
	}
}

// settleVotes makes the changes that [voters.Next] asks for, one after the other and without a pause. With an even
// number of voters, one server fewer may be lost than with the next odd number.
func (s *steward) settleVotes(ctx context.Context, known *observations) {
	select {
	case s.votes <- struct{}{}:
		defer func() { <-s.votes }()
	case <-ctx.Done():
		return
	}
	for range 4 {
		servers, at := s.dir.Log.Members()
		members := s.observe(servers.Servers, known)
		change := voters.Next(members, s.opts.MaxVoters)
		if change.Action == voters.Promote {
			s.markFullDisks(ctx, servers.Servers, members)
			change = voters.Next(members, s.opts.MaxVoters)
		}
		if time.Since(known.failed) <= probeAgainAfter {
			return
		}
		err := s.majorityStoresAfter(ctx, servers.Servers, change, known)
		if err == nil {
			err = s.carryOut(change, at)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("could not change the store's voters; will try again", "member", change.Member.ID, "err", err)
		}
		if change.Action == voters.Keep || err != nil || ctx.Err() != nil {
			return
		}
	}
}

// majorityStoresAfter returns an error unless a majority of the voters after a change stores now, and also the server
// that gets a vote.
func (s *steward) majorityStoresAfter(
	ctx context.Context, members []raft.Server, change voters.Change, known *observations,
) error {
	if change.Action == voters.Keep {
		return nil
	}
	id := raft.ServerID(change.Member.ID)
	after := slices.DeleteFunc(slices.Clone(members), func(m raft.Server) bool {
		return m.ID == id && change.Action != voters.Promote || m.ID != id && m.Suffrage != raft.Voter
	})
	enough := func(stores storing) bool {
		return stores.majorityOf(after) && (change.Action != voters.Promote || stores(id))
	}
	stores := s.storageProbe(ctx, enough)
	if enough(stores) {
		return nil
	}
	if change.Action == voters.Promote && !stores(id) {
		known.byMember[id].failed = time.Now() // another server may store
	} else {
		known.failed = time.Now()
	}
	return fmt.Errorf("raftstore: of the %d servers that would vote, only %d can store at the moment", len(after), stores.count(after))
}

// transferVote moves the vote of this server, the only voter, to another server that has everything, and transfers the
// leadership to it. After the first step there are two voters. The steward of the new leader then takes this server's
// vote. If the second step fails, this server's steward takes one of the two votes.
func (s *steward) transferVote(ctx context.Context, members []raft.Server, at uint64) error {
	select {
	case s.votes <- struct{}{}:
		defer func() { <-s.votes }()
	case <-ctx.Done():
		return contextError(ctx)
	}
	heir := -1
	s.storageProbe(ctx, func(stores storing) bool {
		heir = slices.IndexFunc(members, func(m raft.Server) bool { return m.ID != s.id && stores(m.ID) })
		return heir >= 0
	})
	if heir < 0 {
		return status.Errorf(codes.FailedPrecondition, "raftstore: %q is the only voter and cannot be removed: "+
			"no other server answers, is up to date and can store. Nothing was changed", s.id)
	}
	server := members[heir]
	s.log.Info("the only voter of the store's cluster is being removed: its vote goes to another server", "member", server.ID)
	if err := s.await(s.raft.AddVoter(server.ID, server.Address, at, 0)); err != nil {
		return fmt.Errorf("raftstore: a vote for %s: %w", server.ID, err)
	}
	return s.transferAt(ctx, server)
}

// transferToVoterWithSpace transfers the leadership to a voter that can lead and whose disk is not full, if there is
// one.
func (s *steward) transferToVoterWithSpace(ctx context.Context) {
	withSpace := slices.DeleteFunc(s.voters(), func(m raft.Server) bool {
		if m.ID == s.id {
			return true
		}
		info, err := s.requestInfo(ctx, s.Call, m)
		return err != nil || info.Full || info.Stalled
	})
	if len(withSpace) == 0 { // then no storage probe is written either, which a full disk has no space for
		return
	}
	for _, server := range canLead(ctx, s, withSpace, len(withSpace)) {
		s.log.Warn("this server's disk is full: transferring the store's leadership", "to", server.ID)
		err := s.transferAt(ctx, server)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.log.Warn("could not transfer the store's leadership", "err", err)
	}
}

// othersVote says whether another server has a vote.
func (r *replica) othersVote() bool {
	return slices.ContainsFunc(r.raft.GetConfiguration().Configuration().Servers, func(m raft.Server) bool {
		return m.Suffrage == raft.Voter && m.ID != r.id
	})
}

// carryOut makes a change to the members. at is the index of the log entry that set them. It fails if the members have
// changed since, as the change was decided without knowing that.
func (s *steward) carryOut(change voters.Change, at uint64) error {
	var future raft.IndexFuture
	id := raft.ServerID(change.Member.ID)
	switch change.Action {
	case voters.Keep:
		return nil
	case voters.Promote:
		s.log.Info("a server of the store's cluster gets a vote", "member", id)
		future = s.raft.AddVoter(id, s.addressOf(id), at, 0)
	case voters.Demote:
		s.log.Info("a server of the store's cluster loses its vote", "member", id)
		future = s.raft.DemoteVoter(id, at, 0)
	case voters.Remove:
		s.log.Info("removing the former member of a server that lost its directory", "member", id)
		future = s.raft.RemoveServer(id, at, 0)
	}
	if err := s.await(future); err != nil {
		return fmt.Errorf("raftstore: change of members: %w", err)
	}
	return nil
}

// addressOf returns a member's address in raft. If the address has changed by the time that it is used, the change of
// members fails.
func (s *steward) addressOf(id raft.ServerID) raft.ServerAddress {
	members, _ := s.dir.Log.Members()
	for _, server := range members.Servers {
		if server.ID == id {
			return server.Address
		}
	}
	return ""
}

// observe returns what this server, as leader, knows of every member. known is what it remembers of each.
func (s *steward) observe(servers []raft.Server, known *observations) []voters.Member {
	out := make([]voters.Member, len(servers))
	quiet := make([]bool, len(servers))
	term, newest := s.raft.CurrentTerm(), s.raft.LastIndex()
	for i, server := range servers {
		m := voters.Member{
			ID: string(server.ID), Node: disk.NodeOf(string(server.ID)), Voter: server.Suffrage == raft.Voter, Self: server.ID == s.id,
		}
		of := known.byMember[server.ID]
		if of == nil {
			of = &observation{begunAt: time.Now()}
			known.byMember[server.ID] = of
		}
		if m.Self {
			m.Healthy, m.CaughtUp = true, true
		} else {
			index, stored := s.Stored(server.ID, term)
			without := min(time.Since(stored), time.Since(of.begunAt))
			m.Healthy, m.Gone = without < healthyWithin && !stored.IsZero(), without > replaceAfter
			m.CaughtUp = index+maxMissingEntries >= newest && time.Since(of.failed) > probeAgainAfter
			quiet[i] = min(time.Since(s.Contact(server.ID)), time.Since(of.begunAt)) >= healthyWithin
		}
		out[i] = m
	}
	maps.DeleteFunc(known.byMember, func(id raft.ServerID, _ *observation) bool {
		return !slices.ContainsFunc(servers, func(m raft.Server) bool { return m.ID == id })
	})
	for i := range out {
		// The member's server uses another directory now, so this one is lost. quiet excludes that this one is the new
		// directory and has not been heard yet.
		if quiet[i] && voters.Superseded(out, out[i]) {
			out[i].Gone = true
		}
	}
	return out
}

// markFullDisks sets Full for the members that could get a vote but have full disks, or do not answer.
func (s *steward) markFullDisks(ctx context.Context, servers []raft.Server, members []voters.Member) {
	for i := range members {
		if m := &members[i]; !m.Voter && m.Healthy && m.CaughtUp {
			info, err := s.requestInfo(ctx, s.Call, servers[i])
			m.Full = err != nil || info.Full
		}
	}
}

// requestInfo asks a member for its state.
func (r *replica) requestInfo(ctx context.Context, call caller, server raft.Server) (infoReply, error) {
	return r.exchangeInfo(ctx, call, server, infoCall{})
}

// exchangeInfo asks a member for its state, and tells it what is in the request.
func (r *replica) exchangeInfo(ctx context.Context, call caller, server raft.Server, request infoCall) (infoReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.opts.ElectionTimeout)
	defer cancel()
	info, err := callAt[infoReply](ctx, call, string(server.Address), callInfo, request)
	if err == nil && info.ID != string(server.ID) {
		return infoReply{}, errNoReply // another member answered
	}
	return info, err
}
