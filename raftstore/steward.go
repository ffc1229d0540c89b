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
	// healthyWithin is how long ago a healthy member was last stored at most.
	healthyWithin = 3 * time.Second
	// replaceAfter is how long a voter must not have stored before another server
	// gets its vote.
	replaceAfter = time.Minute
	// probeAgainAfter is how long a server is not promoted that did not store when it was to be, and no vote is changed
	// after too few voters stored: disks that take too long each time would have an entry written for them again and
	// again.
	probeAgainAfter = time.Minute
	// caughtUpWithin is how many entries a server may lack and still be
	// promoted. They reach it while it is.
	caughtUpWithin = 64
	// fullFor is how long a leader refuses writes for want of room before it
	// hands over to a server that may have some.
	fullFor = 3 * time.Second
)

// acquaintances are what a leader knows of the members beside what the transport knows.
type acquaintances struct {
	of     map[raft.ServerID]*acquaintance
	failed time.Time // the last storage probe in which too few voters stored for a change
}

// acquaintance is what a leader knows of one member.
type acquaintance struct {
	since  time.Time // before that it had no reason to hear from it
	failed time.Time // the last storage probe, when it was to be promoted
}

// runSteward looks after the votes while this server leads.
func (p *clustered) runSteward(ctx context.Context) {
	ticker := time.NewTicker(stewardTick)
	defer ticker.Stop()
	known := &acquaintances{of: make(map[raft.ServerID]*acquaintance)}
	var full time.Time
	var tried raft.ServerID
	var space room
	defer p.quota.withoutRoom.Store(false) // the next leader knows
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		p.transferToConnected(ctx, &p.links)
		p.checkRoom(ctx, &space)
		switch {
		case !errors.Is(p.admit(), rpctypes.ErrGRPCNoSpace):
			full = time.Time{}
		case !p.othersVote():
		case full.IsZero():
			full = time.Now()
			continue
		case time.Since(full) <= fullFor:
			continue // a vote that is taken might be that of the one that has room
		default:
			tried = p.handToRoom(ctx, tried)
			full = time.Now() // not again at once
		}
		p.settleVotes(ctx, known)
	}
}

// settleVotes makes the changes that [voters.Next] asks for, one after the other and
// without a pause: with an even number of voters one server less may be lost.
func (p *clustered) settleVotes(ctx context.Context, known *acquaintances) {
	select {
	case p.votes <- struct{}{}:
		defer func() { <-p.votes }()
	case <-ctx.Done():
		return
	}
	for range 4 {
		servers, at := p.dir.Log.Members()
		change := voters.Next(p.observe(servers.Servers, known), p.opts.MaxVoters)
		if time.Since(known.failed) <= probeAgainAfter {
			return
		}
		err := p.bearable(ctx, servers.Servers, change, known)
		if err == nil {
			err = p.carryOut(change, at)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Warn("could not change the store's voters; will try again", "member", change.Member.ID, "err", err)
		}
		if change.Action == voters.Keep || err != nil || ctx.Err() != nil {
			return
		}
	}
}

// bearable returns an error unless a majority of the voters that a change makes stores now, and whoever it gives a
// vote.
func (p *clustered) bearable(
	ctx context.Context, members []raft.Server, change voters.Change, known *acquaintances,
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
	stores := p.storageProbe(ctx, enough)
	if enough(stores) {
		return nil
	}
	if change.Action == voters.Promote && !stores(id) {
		known.of[id].failed = time.Now() // another server may store
	} else {
		known.failed = time.Now()
	}
	return fmt.Errorf("raftstore: of the %d servers that would vote, only %d store anything at the moment", len(after), stores.count(after))
}

// transferVote gives the vote of this server, the only voter, to another one that has
// everything, and lets that one lead. Between the two steps there are two voters; the
// steward takes one vote away again, here only if the second step fails.
func (p *clustered) transferVote(ctx context.Context, members []raft.Server, at uint64) error {
	select {
	case p.votes <- struct{}{}:
		defer func() { <-p.votes }()
	case <-ctx.Done():
		return contextError(ctx)
	}
	heir := -1
	p.storageProbe(ctx, func(stores storing) bool {
		heir = slices.IndexFunc(members, func(m raft.Server) bool { return m.ID != p.id && stores(m.ID) })
		return heir >= 0
	})
	if heir < 0 {
		return status.Errorf(codes.FailedPrecondition, "raftstore: %q is the only voter and cannot be removed: "+
			"no other server answers that has everything and stores. Nothing was changed", p.id)
	}
	server := members[heir]
	p.log.Info("the only voter of the store's cluster is to be removed: another server takes its place", "member", server.ID)
	if err := p.await(p.raft.AddVoter(server.ID, server.Address, at, 0)); err != nil {
		return fmt.Errorf("raftstore: a vote for %s: %w", server.ID, err)
	}
	return p.transferAt(ctx, server)
}

// handToRoom makes a voter lead that stores and whose disk is not full, if there is one. It begins behind the one that
// was tried last, and returns who was tried now.
func (p *clustered) handToRoom(ctx context.Context, last raft.ServerID) (tried raft.ServerID) {
	servers := votersOf(p.raft.GetConfiguration().Configuration().Servers)
	behind := 1 + slices.IndexFunc(servers, func(m raft.Server) bool { return m.ID == last })
	room := slices.DeleteFunc(slices.Concat(servers[behind:], servers[:behind]), func(m raft.Server) bool {
		if m.ID == p.id {
			return true
		}
		info, err := p.requestInfo(ctx, p.Call, m)
		return err != nil || info.Full || info.Stalled
	})
	if len(room) == 0 { // then nothing is written either, where there is no room for it
		return last
	}
	stores := p.storageProbe(ctx, func(stores storing) bool { return stores.count(room) == len(room) })
	for _, server := range room {
		if !stores(server.ID) {
			continue
		}
		last = server.ID
		p.log.Warn("this server's disk is full: handing the store's leadership over", "to", server.ID)
		err := p.transferAt(ctx, server)
		if err == nil || ctx.Err() != nil {
			break
		}
		p.log.Warn("could not hand the store's leadership over", "err", err)
	}
	return last
}

// othersVote says whether another server has a vote.
func (r *replica) othersVote() bool {
	return slices.ContainsFunc(r.raft.GetConfiguration().Configuration().Servers, func(m raft.Server) bool {
		return m.Suffrage == raft.Voter && m.ID != r.id
	})
}

// carryOut changes the members as they were with the entry of that index, and
// fails if others have been changed since: it was decided without knowing.
func (p *clustered) carryOut(change voters.Change, at uint64) error {
	var future raft.IndexFuture
	id := raft.ServerID(change.Member.ID)
	switch change.Action {
	case voters.Keep:
		return nil
	case voters.Promote:
		p.log.Info("a server of the store's cluster gets a vote", "member", id)
		future = p.raft.AddVoter(id, p.addressOf(id), at, 0)
	case voters.Demote:
		p.log.Info("a server of the store's cluster loses its vote", "member", id)
		future = p.raft.DemoteVoter(id, at, 0)
	case voters.Remove:
		p.log.Info("a server of the store's cluster lost its directory and is forgotten", "member", id)
		future = p.raft.RemoveServer(id, at, 0)
	}
	if err := p.await(future); err != nil {
		return fmt.Errorf("raftstore: change of members: %w", err)
	}
	return nil
}

// addressOf is where raft has a member. Were that another place by now, the change
// that it is for would fail.
func (p *clustered) addressOf(id raft.ServerID) raft.ServerAddress {
	members, _ := p.dir.Log.Members()
	for _, server := range members.Servers {
		if server.ID == id {
			return server.Address
		}
	}
	return ""
}

// observe looks at every member. known is what this server, as leader, knows of each.
func (p *clustered) observe(servers []raft.Server, known *acquaintances) []voters.Member {
	out := make([]voters.Member, len(servers))
	quiet := make([]bool, len(servers))
	term, newest := p.raft.CurrentTerm(), p.raft.LastIndex()
	for i, server := range servers {
		m := voters.Member{
			ID: string(server.ID), Node: disk.NodeOf(string(server.ID)), Voter: server.Suffrage == raft.Voter, Self: server.ID == p.id,
		}
		of := known.of[server.ID]
		if of == nil {
			of = &acquaintance{since: time.Now()}
			known.of[server.ID] = of
		}
		if m.Self {
			m.Healthy, m.CaughtUp = true, true
		} else {
			index, stored := p.Stored(server.ID, term)
			without := min(time.Since(stored), time.Since(of.since))
			m.Healthy, m.Gone = without < healthyWithin && !stored.IsZero(), without > replaceAfter
			m.CaughtUp = index+caughtUpWithin >= newest && time.Since(of.failed) > probeAgainAfter
			quiet[i] = min(time.Since(p.Contact(server.ID)), time.Since(of.since)) >= healthyWithin
		}
		out[i] = m
	}
	maps.DeleteFunc(known.of, func(id raft.ServerID, _ *acquaintance) bool {
		return !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == id })
	})
	for i := range out {
		// Another directory of the same server is in use, so this one is lost;
		// unless it is this one that is new, and has not been heard yet.
		if quiet[i] && voters.Superseded(out, out[i]) {
			out[i].Gone = true
		}
	}
	return out
}

// requestInfo requests from a member how it is.
func (r *replica) requestInfo(ctx context.Context, call caller, server raft.Server) (infoAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.opts.ElectionTimeout)
	defer cancel()
	info, err := callAt[infoAnswer](ctx, call, string(server.Address), callInfo, nothing{})
	if err == nil && info.ID != string(server.ID) {
		err = errNoAnswer // of this member
	}
	return info, err
}

// notePeers keeps the note of the other members' addresses until ctx is done.
// Every server has one, whoever leads: any directory may turn out to be damaged.
func (p *clustered) notePeers(ctx context.Context) {
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
func (p *clustered) savePeers() {
	servers := p.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 0 {
		return // not yet: what it knows is all that leads it to the others
	}
	var peers []disk.Peer
	var ids []raft.ServerID
	for _, server := range servers {
		if server.ID != p.id {
			peers = append(peers, disk.Peer{ID: string(server.ID), Address: dialAddress(server.Address)})
			ids = append(ids, server.ID)
		}
	}
	p.Retain(ids)
	if err := p.dir.SavePeers(peers); err != nil {
		p.log.Debug("could not note the other servers' addresses", "err", err)
	}
}
