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

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/voters"
)

const (
	// stewardTick is how often the leader looks at the members.
	stewardTick = time.Second
	// peersTick is how often a server looks whether the others are still those
	// that it noted.
	peersTick = 5 * time.Second
	// healthyWithin is how long ago a healthy member answered at most.
	healthyWithin = 3 * time.Second
	// replaceAfter is how long a voter has to be gone before another server
	// gets its vote.
	replaceAfter = time.Minute
	// caughtUpWithin is how many entries a server may lack and still be
	// promoted. They reach it while it is.
	caughtUpWithin = 64
	// fullFor is how long a leader refuses writes for want of room before it
	// hands over to a server that may have some.
	fullFor = 3 * time.Second
)

// runSteward looks after the votes while this server leads.
func (p *peers) runSteward(ctx context.Context) {
	ticker := time.NewTicker(stewardTick)
	defer ticker.Stop()
	known := make(map[raft.ServerID]time.Time)
	var full time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !errors.Is(p.s.admit(), rpctypes.ErrGRPCNoSpace) {
			full = time.Time{}
		} else if full.IsZero() {
			full = time.Now()
		} else if time.Since(full) > fullFor && p.s.othersVote() {
			p.handToRoom(ctx)
			full = time.Now() // not again at once
		}
		p.settleVotes(ctx, known)
	}
}

// settleVotes makes the changes that [voters.Next] asks for, one after the other and
// without a pause: with an even number of voters one server less may be lost.
func (p *peers) settleVotes(ctx context.Context, known map[raft.ServerID]time.Time) {
	select {
	case p.votes <- struct{}{}:
		defer func() { <-p.votes }()
	case <-ctx.Done():
		return
	}
	for range 4 {
		servers, at := p.s.dir.Log.Members()
		change := voters.Next(p.observe(ctx, servers.Servers, known), p.s.opts.MaxVoters)
		err := p.carryOut(change, at)
		if err != nil && ctx.Err() == nil {
			p.s.log.Warn("could not change the store's voters; will try again", "member", change.Member.ID, "err", err)
		}
		if change.Action == voters.Keep || err != nil || ctx.Err() != nil {
			return
		}
	}
}

// bequeath gives the vote of this server, the only voter, to another one that has
// everything, and lets that one lead. Between the two steps there are two voters; the
// steward takes one vote away again, here only if the second step fails.
func (p *peers) bequeath(ctx context.Context, members []raft.Server, at uint64) error {
	select {
	case p.votes <- struct{}{}:
		defer func() { <-p.votes }()
	case <-ctx.Done():
		return contextError(ctx)
	}
	for _, server := range members {
		if server.ID == p.s.id || !p.s.caughtUp(ctx, server) {
			continue
		}
		p.s.log.Info("the only voter of the store's cluster is to be removed: another server takes its place", "member", server.ID)
		if err := p.s.await(p.s.raft.AddVoter(server.ID, server.Address, at, 0)); err != nil {
			return fmt.Errorf("raftstore: a vote for %s: %w", server.ID, err)
		}
		return p.s.transferTo(ctx, memberID(string(server.ID)))
	}
	return status.Errorf(codes.FailedPrecondition, "raftstore: %q is the only voter and cannot be removed: no other server answers that has everything. Nothing was changed", p.s.id)
}

// handToRoom makes a voter lead whose disk is not full, if there is one.
func (p *peers) handToRoom(ctx context.Context) {
	for _, server := range p.s.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage != raft.Voter || server.ID == p.s.id {
			continue
		}
		if info, err := p.s.ask(ctx, server); err != nil || info.Full {
			continue
		}
		p.s.log.Warn("this server's disk is full: handing the store's leadership over", "to", server.ID)
		if err := p.s.transferTo(ctx, memberID(string(server.ID))); err != nil && ctx.Err() == nil {
			p.s.log.Warn("could not hand the store's leadership over", "err", err)
		}
		return
	}
}

func (s *Store) othersVote() bool {
	return slices.ContainsFunc(s.Members(), func(m Member) bool { return m.Voter && !m.Self })
}

// carryOut changes the members as they were with the entry of that index, and
// fails if others have been changed since: it was decided without knowing.
func (p *peers) carryOut(change voters.Change, at uint64) error {
	var future raft.IndexFuture
	id := raft.ServerID(change.Member.ID)
	switch change.Action {
	case voters.Keep:
		return nil
	case voters.Promote:
		p.s.log.Info("a server of the store's cluster gets a vote", "member", id)
		future = p.s.raft.AddVoter(id, p.addressOf(id), at, 0)
	case voters.Demote:
		p.s.log.Info("a server of the store's cluster loses its vote", "member", id)
		future = p.s.raft.DemoteVoter(id, at, 0)
	case voters.Remove:
		p.s.log.Info("a server of the store's cluster lost its directory and is forgotten", "member", id)
		future = p.s.raft.RemoveServer(id, at, 0)
	}
	if err := p.s.await(future); err != nil {
		return fmt.Errorf("raftstore: change of members: %w", err)
	}
	return nil
}

// addressOf is where raft has a member. Were that another place by now, the change
// that it is for would fail.
func (p *peers) addressOf(id raft.ServerID) raft.ServerAddress {
	members, _ := p.s.dir.Log.Members()
	for _, server := range members.Servers {
		if server.ID == id {
			return server.Address
		}
	}
	return ""
}

// observe looks at every member. known is since when this server, as leader,
// knows of each: before that it had no reason to hear from it.
func (p *peers) observe(ctx context.Context, servers []raft.Server, known map[raft.ServerID]time.Time) []voters.Member {
	out := make([]voters.Member, len(servers))
	members := make(map[raft.ServerID]bool)
	silent := make([]time.Duration, len(servers))
	for i, server := range servers {
		m := voters.Member{
			ID: string(server.ID), Node: disk.NodeOf(string(server.ID)), Voter: server.Suffrage == raft.Voter, Self: server.ID == p.s.id,
		}
		members[server.ID] = true
		if known[server.ID].IsZero() {
			known[server.ID] = time.Now()
		}
		if m.Self {
			m.Healthy, m.CaughtUp = true, true
		} else {
			contact := p.Contact(server.ID)
			silent[i] = min(time.Since(contact), time.Since(known[server.ID]))
			m.Healthy, m.Gone = silent[i] < healthyWithin && !contact.IsZero(), silent[i] > replaceAfter
			m.CaughtUp = !m.Voter && m.Healthy && p.s.caughtUp(ctx, server)
		}
		out[i] = m
	}
	maps.DeleteFunc(known, func(id raft.ServerID, _ time.Time) bool { return !members[id] })
	for i := range out {
		// Another directory of the same server is in use, so this one is lost;
		// unless it is this one that is new, and has not been heard yet.
		if !out[i].Self && silent[i] >= healthyWithin && voters.Superseded(out, out[i]) {
			out[i].Gone = true
		}
	}
	return out
}

// caughtUp asks a server how far its log goes.
func (s *Store) caughtUp(ctx context.Context, server raft.Server) bool {
	info, err := s.ask(ctx, server)
	return err == nil && info.Applied+caughtUpWithin >= s.raft.CommitIndex()
}

// ask asks a member how it is.
func (s *Store) ask(ctx context.Context, server raft.Server) (infoAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*s.opts.ElectionTimeout)
	defer cancel()
	info, err := callAt[infoAnswer](ctx, s.others.Call, string(server.Address), callInfo, nothing{})
	if err == nil && info.ID != string(server.ID) {
		err = errNoAnswer // of this member
	}
	return info, err
}

// notePeers keeps the note of the other members' addresses until ctx is done.
// Every server has one, whoever leads: any directory may turn out to be damaged.
func (p *peers) notePeers(ctx context.Context) {
	ticker := time.NewTicker(peersTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.savePeers()
		}
	}
}

// savePeers notes the other members' addresses, should this directory turn out
// to be damaged at some start.
func (p *peers) savePeers() {
	servers := p.s.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 0 {
		return // not yet: what it knows is all that leads it to the others
	}
	var peers []disk.Peer
	var ids []raft.ServerID
	for _, server := range servers {
		if server.ID != p.s.id {
			peers = append(peers, disk.Peer{ID: string(server.ID), Address: dialAddress(server.Address)})
			ids = append(ids, server.ID)
		}
	}
	p.Retain(ids)
	if err := p.s.dir.SavePeers(peers); err != nil {
		p.s.log.Debug("could not note the other servers' addresses", "err", err)
	}
}
