//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestStalledDisk: the disk of the server that leads stalls, so that nothing which it writes comes to an end, nor fails. Another one leads, writes through
// the others go on, and requests through an agent too. When the disk works again the server follows, and nothing is lost.
func TestStalledDisk(t *testing.T) {
	c := NewPrepared(t, 3, 1, (*harness.Server).AddDisk)
	x := startClients(t, c, "load", "")
	x.some(t)
	agent := c.Agents[0]
	times, lasts := 1, 12*time.Second
	if whole {
		times, lasts = 5, time.Minute
	}
	excused := map[*harness.Server][]window{}
	for range times {
		leader := c.usedBy(t, agent) // the worst case: no connection of the agent's ends by itself
		c.Lead(leader)
		began := time.Now()
		release := leader.StallDisk()
		x.writesGoOn(t, time.Now(), leader)
		gap := x.longestGap(began, leader)
		harness.Eventually(t, soon, "another server leads", func() error {
			next, term, err := c.Leader(t.Context(), c.Servers)
			if err == nil && next == leader {
				err = fmt.Errorf("machine %d still leads, in term %d", next.Number, term)
			}
			return err
		})
		x.asksGoOn(t, began, nil)
		time.Sleep(lasts - time.Since(began)) // a stall has to last for a while, and no event ends that
		_, slowest := x.askers[agent].Answered(began)
		excused[agent] = append(excused[agent], window{began, time.Now()}) // that they go on is what counts
		release()
		back := time.Now()
		c.WaitWhole()
		harness.Eventually(t, soon, "writes at all servers go on", func() error { return errors.Join(x.all(back), leader.Alive()) })
		t.Logf("the disk of machine %d stalled, which the agent used: the others were without an acknowledged write for %v at most; a request through the agent waited "+
			"for %v at most; whole %v after the disk's return", leader.Number, gap.Round(time.Millisecond), slowest.Round(time.Millisecond), time.Since(back).Round(100*time.Millisecond))
	}
	x.verify(t, excused)
}
