// SPDX-License-Identifier: Apache-2.0

package voters_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/raftstore/voters"
)

// Whatever the members' state, as long as the leader has a majority: following
// the plan ends, at an odd number, without risk on the way.
func TestNextLeadsToAnOddNumberWithoutRisk(t *testing.T) {
	kinds := []voters.Member{
		{Voter: true, Healthy: true},
		{Voter: true},
		{Voter: true, Gone: true},
		{Healthy: true, CaughtUp: true},
		{Healthy: true, CaughtUp: true, Full: true},
		{Healthy: true},
		{},
		{Gone: true},
	}
	const others = 5
	members := make([]voters.Member, 0, others+1)
	checked := 0
	var fill func(left int)
	fill = func(left int) {
		if left > 0 {
			for _, k := range kinds {
				members = append(members, k)
				fill(left - 1)
				members = members[:len(members)-1]
			}
			return
		}
		for _, maxVoters := range []int{1, 3, 5, 7} {
			for twins := range 2 {
				if checkPlan(t, members, maxVoters, twins == 1) {
					checked++
				}
			}
		}
	}
	for n := range others + 1 {
		members = append(members[:0], voters.Member{Voter: true, Self: true, Healthy: true, CaughtUp: true})
		fill(n)
	}
	t.Logf("%d situations", checked)
}

// margin is how many more of the voters may fail.
func margin(members []voters.Member) int {
	voting, healthy := votersOf(members)
	return healthy - (voting/2 + 1)
}

func votersOf(members []voters.Member) (voting, healthy int) {
	for _, m := range members {
		if m.Voter {
			voting++
			if m.Healthy {
				healthy++
			}
		}
	}
	return voting, healthy
}

// checkPlan reports whether the situation can occur. With twins, the last two
// members are directories of the same server.
func checkPlan(t *testing.T, situation []voters.Member, maxVoters int, twins bool) bool {
	if margin(situation) < 0 {
		return false
	}
	members := slices.Clone(situation)
	for i := range members {
		members[i].Node = fmt.Sprint("n", i)
		members[i].ID = fmt.Sprintf("%s.AAAAAAAAA%c", members[i].Node, 'A'+i)
	}
	if n := len(members); twins {
		// The older one is lost, hence silent.
		if n < 3 || members[n-1].Healthy == members[n-2].Healthy {
			return false
		}
		members[n-1].Node = members[n-2].Node
		members[n-1].ID = members[n-1].Node + ".AAAAAAAAAZ"
		for i := range members {
			if !members[i].Healthy && voters.Superseded(members, members[i]) {
				members[i].Gone = true
			}
		}
	}
	var steps []string
	fail := func(format string, args ...any) {
		t.Errorf("%s\nmaxVoters %d, from %+v\nsteps %v", fmt.Sprintf(format, args...), maxVoters, situation, steps)
	}
	for range 4 * len(members) {
		change := voters.Next(members, maxVoters)
		what, m := change.Action, change.Member
		steps = append(steps, fmt.Sprintf("%d %s", what, m.ID))
		if what == voters.Keep {
			checkRest(members, maxVoters, fail)
			return true
		}
		before, beforeHealthy := votersOf(members)
		was := margin(members)
		at := slices.IndexFunc(members, func(o voters.Member) bool { return o.ID == m.ID })
		if at < 0 || members[at].Self {
			fail("the leader, or no server, is to change")
			return true
		}
		switch what {
		case voters.Promote:
			if members[at].Voter || !members[at].Healthy || !members[at].CaughtUp || members[at].Full {
				fail("it promotes who is not ready")
			}
			replaces := slices.ContainsFunc(members, func(o voters.Member) bool { return o.Voter && o.Gone })
			if before%2 == 1 && before != beforeHealthy && !replaces {
				fail("it enters an even number with an unhealthy voter that it does not replace")
			}
			members[at].Voter = true
		case voters.Demote:
			members[at].Voter = false
			members[at].CaughtUp = members[at].Healthy
		case voters.Remove:
			if members[at].Healthy {
				fail("it removes a healthy member")
			}
			members = slices.Delete(members, at, at+1)
		}
		if after := margin(members); after < 0 || after < was && before <= maxVoters {
			fail("%d voters may fail, after %d", after, was)
			return true
		}
	}
	fail("it does not end")
	return true
}

func checkRest(members []voters.Member, maxVoters int, fail func(string, ...any)) {
	voting, healthy := votersOf(members)
	if voting%2 == 0 {
		fail("it rests at %d voters", voting)
	}
	if voting == healthy && voting > maxVoters {
		fail("it rests at %d voters", voting)
	}
	ready := 0
	for _, m := range members {
		if m.Voter && m.Healthy || m.Healthy && m.CaughtUp && !m.Full {
			ready++
		}
		if m.Gone && !m.Voter && voters.Superseded(members, m) {
			fail("it keeps a lost directory")
		}
	}
	best := min(ready, maxVoters)
	if best -= (best + 1) % 2; voting == healthy && voting < best {
		fail("it rests at %d voters of %d", voting, best)
	}
	lost := slices.ContainsFunc(members, func(m voters.Member) bool { return m.Voter && m.Gone })
	if lost && ready > healthy && voting <= maxVoters {
		fail("it keeps a voter that is gone, though another server is ready")
	}
}
