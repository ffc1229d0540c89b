//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPowerCut: all machines lose their power at once, and come back in another order. Nothing that was acknowledged is
// lost.
func TestPowerCut(t *testing.T) {
	c := New(t, 3, 1)
	x := startClients(t, c, "load", "")
	x.some(t)
	all := append(slices.Clone(c.Servers), c.Agents...)
	for _, s := range all {
		s.PowerOff()
	}
	x.stop()
	for _, s := range slices.Backward(all) {
		s.PowerOn()
		s.Start()
	}
	back := time.Now()
	c.WaitWhole()
	t.Logf("whole %v after the last one was switched on", time.Since(back).Round(100*time.Millisecond))
	x.allHave(t, x.names())
}

// mayFail is what coracle member list says of a cluster with so many voters.
var mayFail = map[int]string{1: "this is the only server", 3: "any one server", 5: "any 2 servers at the same time"}

// TestClusterGrowsToSevenAndShrinks: one server grows to three, five and seven; an eighth is refused. They shrink to
// three, and each of these is replaced by a new machine: the first one when its power is gone, by the machine that was
// refused, which gets its vote at once. All the while clients write at three servers at most and watch, and an agent's
// balancer reaches the API.
func TestClusterGrowsToSevenAndShrinks(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes")
	c := New(t, 1, 1)
	x := startClients(t, c, "load", "")
	x.shape(t)
	for len(c.Servers) < 7 {
		c.Join()
		c.Join()
		x.shape(t)
	}
	eighth := c.oneTooMany(t)
	for len(c.Servers) > 3 {
		c.remove(t, c.MustLeader())
		x.shape(t)
	}

	old := slices.Clone(c.Servers)
	late := c.JoinOn(eighth)
	x.shape(t)
	c.promote(t, old[0], late)
	x.shape(t)
	for _, s := range old[1:] {
		c.Join()
		x.shape(t) // of four servers three vote, and the new one has everything
		c.remove(t, s)
		x.shape(t)
	}
	x.verify(t, nil)
}

// shape waits until the cluster is whole and says what it bears, three of its servers have clients, if there are so
// many, and what clients ask has answers, through the agents too.
func (x *clients) shape(t *testing.T) {
	t.Helper()
	began := time.Now()
	for s := range x.writers {
		if !slices.Contains(x.c.Servers, s) {
			x.leave(t, s)
		}
	}
	x.c.WaitWhole()
	t.Logf("%d servers: whole after %v", len(x.c.Servers), time.Since(began).Round(100*time.Millisecond))
	for _, s := range x.c.Servers {
		if x.writers[s] == nil && len(x.writers) < 3 {
			x.join(t, s)
		}
	}
	x.some(t)
	x.c.Servers[0].Members(0, mayFail[voters(len(x.c.Servers))])
	now := time.Now()
	x.writesGoOn(t, now, nil)
	x.asksGoOn(t, now, nil)
}

// oneTooMany: an eighth server gets the answer that it is one too many, and ends; the server that it asked says so in
// one line. It returns the machine.
func (c *Cluster) oneTooMany(t *testing.T) *harness.Machine {
	t.Helper()
	const line = "rejected a joining machine"
	asked := c.Servers[0]
	before := asked.InLog(line)
	s := c.machine().NewPeer(asked, c.flags()...)
	s.Start()
	testenv.Equal(t, s.WaitExit(soon), 1, "it ended with exit code")
	lastLog := s.LogTail(1)
	t.Log(lastLog)
	harness.Says(t, lastLog, "the cluster has 7 servers", "Join as an agent, or remove a server that is lost")
	if n := asked.InLog(line) - before; n != 1 {
		t.Errorf("the server that it asked has %d lines of it:\n%s", n, asked.LogTail(20))
	}
	return s.Machine
}

// promote: a server without a vote gets none as long as all voters answer, also by coracle member promote. When a
// voter's power is gone, it gets that one's at once, and that one leaves.
func (c *Cluster) promote(t *testing.T, victim, late *harness.Server) {
	t.Helper()
	at := Without(Without(c.Servers, victim), late)[0]
	refused(t, at, "all 3 voters answer. One more would make their number even", "member", "promote", late.NodeName())
	refused(t, at, "has a vote already", "member", "promote", at.NodeName())
	refused(t, at, `there is no server "nobody"`, "member", "promote", "nobody")
	victim.PowerOff()
	killedAt := time.Now()
	tries := 0
	harness.Eventually(t, soon, "the server without a vote is promoted", func() error {
		_, err := at.Run(at.Coracle(), "member", "promote", late.NodeName(), "--data-dir", at.DataDir)
		if tries++; tries > 1 && err != nil && strings.Contains(err.Error(), "has a vote already") { // an earlier try had no answer
			return nil
		}
		return err
	})
	t.Logf("promoted %v after the power of a voter was gone", time.Since(killedAt).Round(100*time.Millisecond))
	asked := 0
	for _, s := range c.Servers {
		asked += s.InLog("a server of the store's cluster gets a vote, on request")
	}
	testenv.True(t, asked == 1, "the servers say %d times that one got a vote because that was asked for", asked)
	harness.Eventually(t, soon, "the vote of the one that is gone is the new one's", func() error {
		out, err := at.Run(at.Coracle(), "member", "list", "-o", "json", "--data-dir", at.DataDir)
		var list status.Servers
		if jsonErr := json.Unmarshal([]byte(out), &list); jsonErr != nil {
			return errors.Join(err, jsonErr)
		}
		roles := map[string]string{}
		for _, s := range list.Servers {
			roles[s.Name] = s.Role
		}
		if now := roles[late.NodeName()]; now != status.Voter && now != status.Leader || roles[victim.NodeName()] != status.NonVoter {
			return fmt.Errorf("of %s and %s, which is gone, the roles are %v", late.NodeName(), victim.NodeName(), roles)
		}
		return nil
	})
	c.removeServer(t, victim)
}

// refused waits until a command on a server's machine is refused with those words.
func refused(t *testing.T, s *harness.Server, want string, args ...string) {
	t.Helper()
	what := "coracle " + strings.Join(args, " ")
	harness.Eventually(t, soon, fmt.Sprintf("%s is refused: %s", what, want), func() error {
		out, err := s.Run(s.Coracle(), append(args, "--data-dir", s.DataDir)...)
		testenv.Require(t, err != nil, "%s was done:\n%s", what, out)
		if !strings.Contains(err.Error(), want) { // without a leader that is what is said
			return err
		}
		return nil
	})
}

// remove stops a server and takes it out of the cluster.
func (c *Cluster) remove(t *testing.T, s *harness.Server) {
	t.Helper()
	testenv.NoError(t, s.Stop())
	c.removeServer(t, s)
}

// removeServer takes a server out of the cluster that does not run, by its name, which the others know although it has
// no node and does not answer.
func (c *Cluster) removeServer(t *testing.T, s *harness.Server) {
	t.Helper()
	c.Servers = Without(c.Servers, s)
	tries := 0
	harness.Eventually(t, soon, fmt.Sprintf("server %d is removed", s.Number), func() error {
		other := c.Servers[0]
		_, err := other.Run(other.Coracle(), "member", "remove", s.NodeName(), "--data-dir", other.DataDir)
		if tries++; tries > 1 && err != nil && strings.Contains(err.Error(), "there is no server") { // an earlier try had no answer
			return nil
		}
		return err
	})
}

// some waits until each writer has had writes acknowledged.
func (x *clients) some(t *testing.T) {
	t.Helper()
	harness.Eventually(t, soon, "some writes at each server", func() error {
		for s, w := range x.writers {
			if acked, _ := w.Acked(); len(acked) < 20 {
				return fmt.Errorf("%d at server %d", len(acked), s.Number)
			}
		}
		return nil
	})
}

// names are the ConfigMaps whose writes were acknowledged, at servers that have left too.
func (x *clients) names() []string {
	var names []string
	for _, w := range append(slices.Collect(maps.Values(x.writers)), x.former...) {
		acked, _ := w.Acked()
		for _, a := range acked {
			names = append(names, a.Name)
		}
	}
	return names
}
