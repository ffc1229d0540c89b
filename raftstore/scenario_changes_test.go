// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/voters"

	"github.com/coracle-k8s/coracle/test/testenv"
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
			for _, m := range leader.cluster.Members() {
				if m.Name == n.name && !m.Voter {
					spare = n
				}
			}
		}
		_, at := leader.replica.dir.Log.Members()
		member := voters.Member{ID: string(spare.running().replica.id), Node: spare.name, Healthy: true, CaughtUp: true}
		testenv.NoError(t, leader.cluster.RemoveMember(c.within(20*time.Second), spare.name))
		spare.stop()
		spare.gone = true
		for _, what := range []voters.Action{voters.Promote, voters.Demote, voters.Remove} {
			if err := peersOf(leader).steward.carryOut(voters.Change{Action: what, Member: member}, at); err == nil {
				t.Errorf("change %d was made, of a server that had been taken out:\n%s", what, c.state())
			}
		}
		if members, _ := leader.replica.dir.Log.Members(); len(members.Servers) != 3 {
			t.Errorf("the members are %v", members.Servers)
		}
	})
}

// An entry that this version cannot read is said to be that.
func TestUnreadableEntry(t *testing.T) {
	f := newFSM(func() {}, func(mvcc.Command, mvcc.Result) {})
	defer func() {
		said := fmt.Sprint(recover())
		for _, part := range []string{"log entry 7 was written by a newer version", "kind 99", "is safe", "start the version"} {
			testenv.True(t, strings.Contains(said, part), "%q does not say %q", said, part)
		}
	}()
	entry := append(mvcc.NewEntry(nil), 99, 0, 0)
	f.Apply(&raft.Log{Index: 7, Term: 1, Type: raft.LogCommand, Data: entry})
}
