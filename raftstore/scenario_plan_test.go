// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// Whatever the members' state, as long as the leader has a majority: following
// the plan ends, at an odd number, without risk on the way.
func TestScenarioPlan(t *testing.T) {
	kinds := []standing{
		{voter: true, healthy: true},
		{voter: true},
		{voter: true, gone: true},
		{healthy: true, caughtUp: true},
		{healthy: true},
		{},
		{gone: true},
	}
	const others = 5
	members := make([]standing, 0, others+1)
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
		members = append(members[:0], standing{voter: true, self: true, healthy: true, caughtUp: true})
		fill(n)
	}
	t.Logf("%d situations", checked)
}

// margin is how many more of the voters may fail.
func margin(members []standing) int {
	voters, healthy := votersOf(members)
	return healthy - (voters/2 + 1)
}

func votersOf(members []standing) (voters, healthy int) {
	for _, m := range members {
		if m.voter {
			voters++
			if m.healthy {
				healthy++
			}
		}
	}
	return voters, healthy
}

// checkPlan reports whether the situation can occur. With twins, the last two
// members are directories of the same server.
func checkPlan(t *testing.T, situation []standing, maxVoters int, twins bool) bool {
	if margin(situation) < 0 {
		return false
	}
	members := slices.Clone(situation)
	for i := range members {
		members[i].id = raft.ServerID(fmt.Sprintf("n%d.AAAAAAAAA%c", i, 'A'+i))
	}
	if n := len(members); twins {
		// The older one is lost, hence silent.
		if n < 3 || members[n-1].healthy == members[n-2].healthy {
			return false
		}
		members[n-1].id = raft.ServerID(fmt.Sprintf("n%d.AAAAAAAAA%c", n-2, 'Z'))
		for i := range members {
			if !members[i].healthy && superseded(members, members[i]) {
				members[i].gone = true
			}
		}
	}
	var steps []string
	fail := func(format string, args ...any) {
		t.Errorf("%s\nmaxVoters %d, from %+v\nsteps %v", fmt.Sprintf(format, args...), maxVoters, situation, steps)
	}
	for range 4 * len(members) {
		what, m := plan(members, maxVoters)
		steps = append(steps, fmt.Sprintf("%d %s", what, m.id))
		if what == keep {
			checkRest(members, maxVoters, fail)
			return true
		}
		before, beforeHealthy := votersOf(members)
		was := margin(members)
		at := slices.IndexFunc(members, func(o standing) bool { return o.id == m.id })
		if at < 0 || members[at].self {
			fail("the leader, or nobody, is to change")
			return true
		}
		switch what {
		case promote:
			if members[at].voter || !members[at].healthy || !members[at].caughtUp {
				fail("it promotes who is not ready")
			}
			replaces := slices.ContainsFunc(members, func(o standing) bool { return o.voter && o.gone })
			if before%2 == 1 && before != beforeHealthy && !replaces {
				fail("it enters an even number with an unhealthy voter that it does not replace")
			}
			members[at].voter = true
		case demote:
			members[at].voter = false
			members[at].caughtUp = members[at].healthy
		case remove:
			if members[at].healthy {
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

func checkRest(members []standing, maxVoters int, fail func(string, ...any)) {
	voters, healthy := votersOf(members)
	if voters%2 == 0 {
		fail("it rests at %d voters", voters)
	}
	if voters == healthy && voters > maxVoters {
		fail("it rests at %d voters", voters)
	}
	ready := 0
	for _, m := range members {
		if m.voter && m.healthy || m.healthy && m.caughtUp {
			ready++
		}
		if m.gone && !m.voter && superseded(members, m) {
			fail("it keeps a lost directory")
		}
	}
	best := min(ready, maxVoters)
	if best -= (best + 1) % 2; voters == healthy && voters < best {
		fail("it rests at %d voters of %d", voters, best)
	}
	gone := slices.ContainsFunc(members, func(m standing) bool { return m.voter && m.gone })
	if gone && ready > healthy && voters <= maxVoters {
		fail("it keeps a voter that is gone, though another server is ready")
	}
}
