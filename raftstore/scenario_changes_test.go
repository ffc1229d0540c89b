// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A change of members that was decided on before another change is not made any
// more: the steward's plan to give a server a vote, for example, when the operator
// has taken that server out meanwhile.
func TestScenarioOutdatedChange(t *testing.T) {
	scenario(t, 1, 4, func(c *cluster) {
		c.pass(2 * time.Second)
		leader := c.leader().running()
		var spare *node
		for _, n := range c.nodes {
			for _, m := range leader.Members() {
				if m.Name == n.name && !m.Voter {
					spare = n
				}
			}
		}
		_, at := leader.dir.Log.Members()
		member := standing{id: spare.running().id, address: spare.running().address, healthy: true, caughtUp: true}
		if err := leader.RemoveMember(c.within(20*time.Second), spare.name); err != nil {
			t.Fatal(err)
		}
		spare.stop()
		spare.gone = true
		for _, what := range []action{promote, demote, remove} {
			if err := leader.carryOut(what, member, at); err == nil {
				t.Errorf("change %d was made, of a server that had been taken out:\n%s", what, c.state())
			}
		}
		if members, _ := leader.dir.Log.Members(); len(members.Servers) != 3 {
			t.Errorf("the members are %v", members.Servers)
		}
	})
}

// A voter is not taken out where too few of the others are alive, not even right
// after they died. Those that are dead can be.
func TestScenarioRemovalKeepsMajority(t *testing.T) {
	seeds(t, 2, func(t *testing.T, seed uint64) {
		scenario(t, seed, 5, func(c *cluster) {
			c.pass(time.Second)
			leader := c.leader()
			dead, well := c.others(leader)[:2], c.others(leader)[2:]
			for _, n := range dead {
				n.crash()
			}
			err := leader.running().RemoveMember(c.within(20*time.Second), well[0].name)
			if status.Code(err) != codes.FailedPrecondition {
				t.Errorf("seed %d: one of three that are left was taken out, or so: %v\n%s", seed, err, c.state())
			}
			c.serves(leader, well[0], well[1])
			for _, n := range dead {
				if err := leader.running().RemoveMember(c.within(20*time.Second), n.name); err != nil {
					t.Errorf("seed %d: a dead server stays: %v", seed, err)
				}
				n.gone = true
			}
			c.serves(leader, well[0], well[1])
			c.rest(30*time.Second, 3, names(c.others(dead...))...)
		})
	})
}
