// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"
)

// The leader waits for a processor now and then, and longer each time: nothing comes from it, and what is sent to it
// waits. It keeps its place, as long as that is less than the second after which another server is to lead. Once it has
// been quiet for a while, the others miss it as soon as ever.
func TestScenarioBusyLeader(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		scenario(t, seed, 3+2*int(seed%2), func(c *cluster) {
			w := c.work(2)
			c.pass(time.Second)
			leader := c.leader()
			term := leader.term()
			for _, waits := range []time.Duration{200, 250, 300, 350, 400, 450} {
				for range 3 {
					c.isolate(leader)
					c.pass(waits * time.Millisecond)
					c.net.HealAll()
					c.pass(500*time.Millisecond + time.Duration(c.rand.Int64N(int64(time.Second))))
				}
				if grown := c.leader().term() - term; grown > 0 {
					c.Fatalf("seed %d: %d elections beside a leader that waited for %d ms", seed, grown, waits)
				}
			}
			c.pass(25 * time.Second)
			c.isolate(leader)
			if took := c.untilLed(c.others(leader), time.Minute); took > 500*time.Millisecond {
				t.Errorf("seed %d: the leader vanished after it had been quiet for long, and another one leads after %v", seed, took)
			}
			c.net.HealAll()
			w.stop()
		})
	})
}
