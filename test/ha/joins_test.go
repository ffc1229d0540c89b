//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestInterruptedJoins: a server with a node and an agent are killed again and again while they join, each time a few
// lines of their log later, until one gets to its end. Started once more, each is one member and one node of the
// cluster, which goes on all the while.
func TestInterruptedJoins(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes")
	c := NewOfNodes(t, 1, 0)
	x := startClients(t, c, "load", "")
	first := c.Servers[0]
	joins := map[string]*harness.Server{"server": c.machine().NewPeer(first), "agent": c.machine().NewAgent(first)}
	for _, role := range []string{"server", "agent"} {
		s := joins[role]
		s.AddBoxImage()
		killed := 0
		for lines := 1; c.startsUntil(s, lines); lines += 2 {
			s.Kill()
			killed++
		}
		t.Logf("the %s was killed %d times while it joined", role, killed)
		testenv.False(t, killed < 5, "the %s was killed %d times: this shows little", role, killed)
		s.Kill()
		s.Start()
		if role == "server" {
			c.Servers = append(c.Servers, s)
		} else {
			c.Agents = append(c.Agents, s)
		}
		c.WaitWhole()
		if out := first.Members(0, "With a third server any one may fail"); strings.Count(out, ":6443 ") != 2 {
			t.Errorf("after the %s has joined there are not two servers:\n%s", role, out)
		}
	}
	nodes, err := first.TryKubectl("get", "nodes", "-o", "name")
	if got, want := len(strings.Fields(nodes)), 3; err != nil || got != want {
		t.Errorf("there are %d nodes, want %d: %v\n%s", got, want, err, nodes)
	}
	x.writesGoOn(t, time.Now(), nil)
	x.verify(t, nil)
}

// startsUntil starts a machine that joins, and returns true when its log has so many lines more, and false when its
// node is ready before.
func (c *Cluster) startsUntil(s *harness.Server, lines int) (early bool) {
	c.T.Helper()
	has := func() int {
		data, err := os.ReadFile(s.Log)
		testenv.Require(c.T, err == nil || os.IsNotExist(err), "%v", err)
		return strings.Count(string(data), "\n")
	}
	before := has()
	s.Start()
	harness.Eventually(c.T, harness.Longer, fmt.Sprintf("machine %d says %d lines, or is ready", s.Number, lines), func() error {
		for range 50 { // it says most of them in one second
			if early = has() >= before+lines; early {
				return nil
			}
			time.Sleep(2 * time.Millisecond) // between two looks
		}
		return c.Servers[0].NodeReady(s) // and it has not ended
	})
	return early
}
