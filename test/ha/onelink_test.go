//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOneLinkCut: the link between the leader and the server that an agent uses is cut in both directions, and no other
// one. A server that reaches both leads, so that writes at every server go on, and requests through the agent too.
func TestOneLinkCut(t *testing.T) {
	harness.ByHand(t)
	c := New(t, 3, 1)
	agent := c.Agents[0]
	x := startClients(t, c, "load", "")
	leader := Without(c.Servers, c.usedBy(t, agent))[0]
	c.Lead(leader)
	x.some(t)
	used := c.usedBy(t, agent)
	testenv.True(t, used != leader, "the agent uses the leader")
	lasts := 20 * time.Second
	if whole {
		lasts = 2 * time.Minute
	}

	began := time.Now()
	c.Site.Split(leader.Machine, used.Machine)
	cut := time.Now()
	x.asksGoOn(t, cut, nil)
	x.writesGoOn(t, cut, nil)
	gap := x.longestGap(began, nil)
	harness.Eventually(t, soon, "another server leads", func() error {
		next, term, err := c.Leader(t.Context(), c.Servers)
		if err == nil && (next == leader || next == used) {
			err = fmt.Errorf("machine %d leads in term %d", next.Number, term)
		}
		return err
	})
	time.Sleep(lasts - time.Since(began)) // a cut has to last for a while, and no event ends that
	_, slowest := x.askers[agent].Answered(began)
	c.Site.Heal()
	back := time.Now()
	c.WaitWhole()
	harness.Eventually(t, soon, "writes at all servers go on", func() error { return errors.Join(x.all(back), leader.Alive()) })
	t.Logf("the link between machine %d, which led, and machine %d, which the agent used, was cut: a server was without an acknowledged write for %v at most; "+
		"a request through the agent waited for %v at most; whole %v after the link was", leader.Number, used.Number, gap.Round(time.Millisecond),
		slowest.Round(time.Millisecond), time.Since(back).Round(100*time.Millisecond))
	x.verify(t, nil)
}
