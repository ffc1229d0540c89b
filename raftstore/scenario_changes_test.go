// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// Servers of an older version are replaced one after the other. What that version
// cannot read may be written when the last one is; then none can come back.
func TestScenarioLevels(t *testing.T) {
	changesAddresses(t)
	scenarioOf(t, 1, 3, func(o *Options) { o.level = 1 }, func(c *cluster) {
		w := c.work(2)
		level := func(n *node) int { return n.running().Status().Level }
		c.pass(time.Second)
		for i, n := range c.nodes {
			for _, o := range c.nodes {
				if level(o) != 1 {
					t.Fatalf("level %d when %d servers are new", level(o), i)
				}
			}
			c.tune = func(o *Options) { o.level = 2 }
			n.stop()
			n.start()
			c.ready(n)
		}
		c.eventually("everybody can read level 2", 10*time.Second, func() bool {
			return level(c.nodes[0]) == 2 && level(c.nodes[1]) == 2 && level(c.nodes[2]) == 2
		})
		w.stop()

		c.tune = func(o *Options) { o.level = 1 }
		leader := c.leader()
		address := withLevel(raftAddress("d.OLD", "d"), 1)
		_, err := peersOf(leader.running()).membership.serveJoin(c.within(time.Second), joinCall{ID: "d.OLD", Address: string(address)})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "too old") {
			t.Errorf("a server joins that cannot read what is written: %v", err)
		}
		old := c.others(leader)[0]
		old.stop()
		old.start()
		c.pass(5 * time.Second)
		testenv.Equal(t, level(leader), 2, "one server that went back to an older version lowered the level to")
		c.serves(leader)
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
