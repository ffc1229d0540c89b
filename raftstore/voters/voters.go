// SPDX-License-Identifier: Apache-2.0

// Package voters decides which of a store's members have a vote. It is a pure function. Its input is the members and
// what the leader has observed of them; its result is the next single change. It owns nothing, knows nothing of raft,
// and changes nothing.
package voters

import (
	"cmp"
	"slices"
)

// Member is a member of the cluster, with what the leader has observed of it.
type Member struct {
	// ID is the member's raft id, Node the server's name. A server that lost its directory comes back as another member
	// with the same name.
	ID, Node string
	Voter    bool
	Self     bool // the member is the leader
	Healthy  bool // it stores, and does not only answer
	Gone     bool // it has not stored for a while, or another member with its name has replaced it
	CaughtUp bool // its log has all entries of the leader's, or nearly all
	Full     bool // its disk is known to be full
}

// Action is the kind of a Change.
type Action int

// The actions. Keep means that no change is needed.
const (
	Keep Action = iota
	Promote
	Demote
	Remove
)

// A Change promotes, demotes or removes one member.
type Change struct {
	Action Action
	Member Member
}

// Next returns the next change of the votes. It changes one server at a time.
//
// The number of voters is kept odd: an even number needs as large a majority as the next odd one, and survives no more
// failures. So servers are promoted in pairs. An even number is only an intermediate step. It is never entered unless
// all voters are healthy or one of them is to be replaced. A lost voter keeps its vote until another server can get it:
// taking the vote alone would not help the others.
func Next(members []Member, maxVoters int) Change {
	// Smaller ids come first, so that decisions do not depend on the order of members.
	members = slices.SortedFunc(slices.Values(members), func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	var voters, ready []Member
	for _, m := range members {
		switch {
		case m.Voter:
			voters = append(voters, m)
		case m.Healthy && m.CaughtUp && !m.Gone && !m.Full:
			ready = append(ready, m)
		}
	}
	i := slices.IndexFunc(voters, func(m Member) bool { return m.Gone && !m.Self })
	unhealthy := 0
	for _, m := range voters {
		if !m.Healthy {
			unhealthy++
		}
	}
	switch {
	case len(voters)%2 == 0 && i >= 0:
		return dismiss(members, voters[i])
	case len(voters)%2 == 0 && len(ready) > 0 && len(voters) < maxVoters && unhealthy == 0:
		return Change{Promote, ready[0]}
	case len(voters)%2 == 0:
		return shrink(voters)
	case i >= 0 && len(ready) > 0 && unhealthy <= (len(voters)-1)/2:
		return Change{Promote, ready[0]} // in place of voters[i]
	case unhealthy == 0 && len(ready) >= 2 && len(voters)+2 <= maxVoters:
		return Change{Promote, ready[0]}
	case unhealthy == 0 && len(voters) > maxVoters:
		return shrink(voters)
	}
	for _, m := range members { // a lost directory does not come back
		if !m.Voter && m.Gone && Superseded(members, m) {
			return Change{Remove, m}
		}
	}
	return Change{}
}

// dismiss takes the vote of a lost member. If its server came back as another member, dismiss removes the member from
// the cluster.
func dismiss(members []Member, m Member) Change {
	if Superseded(members, m) {
		return Change{Remove, m}
	}
	return Change{Demote, m}
}

// Superseded says whether another member with the same name is healthy: the server came back with another directory.
func Superseded(members []Member, m Member) bool {
	return slices.ContainsFunc(members, func(o Member) bool { return o.ID != m.ID && o.Node == m.Node && o.Healthy })
}

// shrink takes one vote from an even number. It prefers an unhealthy voter, and never takes the leader's vote.
func shrink(voters []Member) Change {
	var victim Member
	for _, m := range voters {
		if m.Self {
			continue
		}
		if victim.ID == "" || victim.Healthy || !m.Healthy {
			victim = m
		}
	}
	if victim.ID == "" {
		return Change{}
	}
	return Change{Demote, victim}
}
