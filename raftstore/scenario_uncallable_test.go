// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// saysSoWithin is how long a server may take to report that it has no leader that it can use: a follower goes by raft's
// own timers (docs/adr/0015).
const saysSoWithin = 3 * time.Second

// A server reaches no other server, but its clients reach it. It says so for as long as that lasts, and no longer.
func TestScenarioIsolatedServerSaysSo(t *testing.T) {
	for _, size := range []int{3, 5} {
		for _, who := range []string{"leader", "follower"} {
			t.Run(fmt.Sprintf("%d %s", size, who), func(t *testing.T) {
				stages(t, 1, size, nil, func(c *cluster) {
					c.pass(5 * time.Second)
					victim := c.leader()
					if who == "follower" {
						victim = c.others(victim)[0]
					}
					h := victim.running().Health()
					since, changed := h.WithoutLeader()
					c.endIf(!since.IsZero(), "%s has had no leader since %v before anything happened", victim.name, since)
					c.isolate(victim)
					cut := time.Now()
					select {
					case <-changed:
					case <-time.After(2 * saysSoWithin):
					}
					since, changed = h.WithoutLeader()
					c.endIf(since.Before(cut) || since.After(cut.Add(saysSoWithin)), "cut off at %v, it has had no leader since %v", cut, since)
					for range 6 {
						c.pass(20 * time.Second)
						again, _ := h.WithoutLeader()
						c.failIf(again != since, "it has had no leader since %v, and then since %v", since, again)
						c.failIf(c.writes(victim, 7*time.Second) == nil, "%s is cut off and wrote", victim.name)
					}
					c.net.HealAll()
					select {
					case <-changed:
					case <-time.After(10 * time.Second):
					}
					since, _ = h.WithoutLeader()
					c.failIf(!since.IsZero(), "the links are whole, and it has had no leader since %v", since)
				})
			})
		}
	}
}
