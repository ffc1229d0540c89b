// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/raftstore/disk"
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

// standing is what the leader knows of a member when it decides about votes.
type standing struct {
	id       raft.ServerID
	address  raft.ServerAddress
	voter    bool
	self     bool // the leader
	healthy  bool
	gone     bool // unhealthy for long, or replaced by a member of the same name
	caughtUp bool
}

type action int

const (
	keep action = iota
	promote
	demote
	remove
)

// plan says what to change next about the votes, one server at a time.
//
// The voters rest at an odd number: an even one needs as large a majority as
// the next odd one, and survives no more. So servers are promoted in pairs, and
// an even number is only passed through, never entered unless all voters are
// healthy or one of them is to be replaced. A voter that is gone keeps its vote
// until there is another server for it: without it the others would be no
// better off.
func plan(members []standing, maxVoters int) (action, standing) {
	// Smaller ids first, for decisions that do not depend on the order.
	members = slices.SortedFunc(slices.Values(members), func(a, b standing) int { return cmp.Compare(a.id, b.id) })
	var voters, ready []standing
	for _, m := range members {
		switch {
		case m.voter:
			voters = append(voters, m)
		case m.healthy && m.caughtUp && !m.gone:
			ready = append(ready, m)
		}
	}
	i := slices.IndexFunc(voters, func(m standing) bool { return m.gone && !m.self })
	unhealthy := 0
	for _, m := range voters {
		if !m.healthy {
			unhealthy++
		}
	}
	switch {
	case len(voters)%2 == 0 && i >= 0:
		return dismiss(members, voters[i])
	case len(voters)%2 == 0 && len(ready) > 0 && len(voters) < maxVoters && unhealthy == 0:
		return promote, ready[0]
	case len(voters)%2 == 0:
		return shrink(voters)
	case i >= 0 && len(ready) > 0 && unhealthy <= (len(voters)-1)/2:
		return promote, ready[0] // in place of voters[i]
	case unhealthy == 0 && len(ready) >= 2 && len(voters)+2 <= maxVoters:
		return promote, ready[0]
	case unhealthy == 0 && len(voters) > maxVoters:
		return shrink(voters)
	}
	for _, m := range members { // a directory that was lost does not come back
		if !m.voter && m.gone && superseded(members, m) {
			return remove, m
		}
	}
	return keep, standing{}
}

// dismiss takes the vote of a member that is gone, and the member out of the
// cluster if its server came back as another one.
func dismiss(members []standing, m standing) (action, standing) {
	if superseded(members, m) {
		return remove, m
	}
	return demote, m
}

func superseded(members []standing, m standing) bool {
	return slices.ContainsFunc(members, func(o standing) bool {
		return o.id != m.id && disk.NodeOf(string(o.id)) == disk.NodeOf(string(m.id)) && o.healthy
	})
}

// shrink takes one vote from an even number: the unhealthy first, the leader's
// never.
func shrink(voters []standing) (action, standing) {
	var victim standing
	for _, m := range voters {
		if m.self {
			continue
		}
		if victim.id == "" || victim.healthy || !m.healthy {
			victim = m
		}
	}
	if victim.id == "" {
		return keep, victim
	}
	return demote, victim
}

// runSteward looks after the votes while this server leads.
func (s *Store) runSteward(ctx context.Context) {
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
		if !errors.Is(s.admit(), rpctypes.ErrGRPCNoSpace) {
			full = time.Time{}
		} else if full.IsZero() {
			full = time.Now()
		} else if time.Since(full) > fullFor && s.othersVote() {
			s.handToRoom(ctx)
			full = time.Now() // not again at once
		}
		// One change after the other, without a pause: with an even number of
		// voters one server less may be lost.
		for range 4 {
			servers, at := s.dir.Log.Members()
			what, m := plan(s.standings(ctx, servers.Servers, known), s.opts.MaxVoters)
			err := s.carryOut(what, m, at)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("could not change the store's voters; will try again", "member", m.id, "err", err)
			}
			if what == keep || err != nil || ctx.Err() != nil {
				break
			}
		}
	}
}

// handToRoom makes a voter lead whose disk is not full, if there is one.
func (s *Store) handToRoom(ctx context.Context) {
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage != raft.Voter || server.ID == s.id {
			continue
		}
		if info, err := s.ask(ctx, server); err != nil || info.Full {
			continue
		}
		s.log.Warn("this server's disk is full: handing the store's leadership over", "to", server.ID)
		if err := s.transferTo(ctx, memberID(string(server.ID))); err != nil && ctx.Err() == nil {
			s.log.Warn("could not hand the store's leadership over", "err", err)
		}
		return
	}
}

func (s *Store) othersVote() bool {
	return slices.ContainsFunc(s.Members(), func(m Member) bool { return m.Voter && !m.Self })
}

// carryOut changes the members as they were with the entry of that index, and
// fails if others have been changed since: the plan was made without knowing.
func (s *Store) carryOut(what action, m standing, at uint64) error {
	var future raft.IndexFuture
	switch what {
	case keep:
		return nil
	case promote:
		s.log.Info("a server of the store's cluster gets a vote", "member", m.id)
		future = s.raft.AddVoter(m.id, m.address, at, 0)
	case demote:
		s.log.Info("a server of the store's cluster loses its vote", "member", m.id)
		future = s.raft.DemoteVoter(m.id, at, 0)
	case remove:
		s.log.Info("a server of the store's cluster lost its directory and is forgotten", "member", m.id)
		future = s.raft.RemoveServer(m.id, at, 0)
	}
	if err := s.await(future); err != nil {
		return fmt.Errorf("raftstore: change of members: %w", err)
	}
	return nil
}

// standings looks at every member. known is since when this server, as leader,
// knows of each: before that it had no reason to hear from it.
func (s *Store) standings(ctx context.Context, servers []raft.Server, known map[raft.ServerID]time.Time) []standing {
	out := make([]standing, len(servers))
	members := make(map[raft.ServerID]bool)
	silent := make([]time.Duration, len(servers))
	for i, server := range servers {
		m := standing{id: server.ID, address: server.Address, voter: server.Suffrage == raft.Voter, self: server.ID == s.id}
		members[m.id] = true
		if known[m.id].IsZero() {
			known[m.id] = time.Now()
		}
		if m.self {
			m.healthy, m.caughtUp = true, true
		} else {
			contact := s.peers.Contact(m.id)
			silent[i] = min(time.Since(contact), time.Since(known[m.id]))
			m.healthy, m.gone = silent[i] < healthyWithin && !contact.IsZero(), silent[i] > replaceAfter
			m.caughtUp = !m.voter && m.healthy && s.caughtUp(ctx, server)
		}
		out[i] = m
	}
	maps.DeleteFunc(known, func(id raft.ServerID, _ time.Time) bool { return !members[id] })
	for i := range out {
		// Another directory of the same server is in use, so this one is lost;
		// unless it is this one that is new, and has not been heard yet.
		if !out[i].self && silent[i] >= healthyWithin && superseded(out, out[i]) {
			out[i].gone = true
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
	info, err := callAt[infoAnswer](ctx, s, string(server.Address), callInfo, nothing{})
	if err == nil && info.ID != string(server.ID) {
		err = errNoAnswer // of this member
	}
	return info, err
}

// notePeers keeps the note of the other members' addresses until ctx is done.
// Every server has one, whoever leads: any directory may turn out to be damaged.
func (s *Store) notePeers(ctx context.Context) {
	ticker := time.NewTicker(peersTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.savePeers()
		}
	}
}

// savePeers notes the other members' addresses, should this directory turn out
// to be damaged at some start.
func (s *Store) savePeers() {
	servers := s.raft.GetConfiguration().Configuration().Servers
	if len(servers) == 0 {
		return // not yet: what it knows is all that leads it to the others
	}
	var peers []disk.Peer
	var ids []raft.ServerID
	for _, server := range servers {
		if server.ID != s.id {
			peers = append(peers, disk.Peer{ID: string(server.ID), Address: dialAddress(server.Address)})
			ids = append(ids, server.ID)
		}
	}
	s.peers.Retain(ids)
	if err := s.dir.SavePeers(peers); err != nil {
		s.log.Debug("could not note the other servers' addresses", "err", err)
	}
}
