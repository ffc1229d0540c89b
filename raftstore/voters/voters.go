// SPDX-License-Identifier: Apache-2.0

// Package voters decides who of a store's members has a vote. It is a pure
// function: the members and what the leader has observed of them go in, the next
// single change comes out. It owns nothing, knows no raft, and changes nothing.
package voters

import (
	"cmp"
	"slices"
)

// Member is a member of the cluster and what the leader has observed of it.
type Member struct {
	// ID is raft's, Node the server's name. A server that lost its directory comes
	// back as another member of the same name.
	ID, Node string
	Voter    bool
	Self     bool // the leader
	Healthy  bool // it stores, not only answers
	Gone     bool // it has not stored for long, or another member of its name took its place
	CaughtUp bool // its log goes as far as the leader's, or nearly
	Full     bool // its disk is known to have no room
}

// Action is what to do with a member.
type Action int

// The actions. Keep says that all is as it should be.
const (
	Keep Action = iota
	Promote
	Demote
	Remove
)

// A Change is what to do next, with one member.
type Change struct {
	Action Action
	Member Member
}

// Next says what to change next about the votes, one server at a time.
//
// The voters rest at an odd number: an even one needs as large a majority as
// the next odd one, and survives no more. So servers are promoted in pairs, and
// an even number is only passed through, never entered unless all voters are
// healthy or one of them is to be replaced. A voter that is gone keeps its vote
// until there is another server for it: without it the others would be no
// better off.
func Next(members []Member, maxVoters int) Change {
	// Smaller ids first, for decisions that do not depend on the order.
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
	for _, m := range members { // a directory that was lost does not come back
		if !m.Voter && m.Gone && Superseded(members, m) {
			return Change{Remove, m}
		}
	}
	return Change{}
}

// dismiss takes the vote of a member that is gone, and the member out of the
// cluster if its server came back as another one.
func dismiss(members []Member, m Member) Change {
	if Superseded(members, m) {
		return Change{Remove, m}
	}
	return Change{Demote, m}
}

// Superseded says that another member of the same name is healthy: the server came
// back with another directory.
func Superseded(members []Member, m Member) bool {
	return slices.ContainsFunc(members, func(o Member) bool { return o.ID != m.ID && o.Node == m.Node && o.Healthy })
}

// shrink takes one vote from an even number: the unhealthy first, the leader's
// never.
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
