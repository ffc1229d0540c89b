// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// A follower that lags is reached over a narrow link only. It catches up at the speed of the link, whatever is in the entries: no message
// is too large for the time that it has.
func TestScenarioNarrowLink(t *testing.T) {
	const kb = 1 << 10
	for _, of := range []struct{ rate, values, size int }{
		{8 * kb, 1000, 2 * kb}, {8 * kb, 100, 20 * kb}, {64 * kb, 3000, 100}, {64 * kb, 2000, 2 * kb}, {64 * kb, 200, 20 * kb}, {64 * kb, 6, 700 * kb},
		{512 * kb, 2000, 2 * kb},
	} {
		t.Run(fmt.Sprintf("%d values of %d bytes, %d bytes a second", of.values, of.size, of.rate), func(t *testing.T) {
			stage(t, 1, 3, nil, func(c *cluster) {
				leader := c.leader()
				far := c.others(leader)[0]
				last := far.running().raft.LastIndex
				for _, o := range c.others(far) {
					c.net.Rate(o.name, far.name, of.rate)
					c.net.Rate(far.name, o.name, of.rate)
				}
				c.isolate(far)
				value := noise(of.size)
				for i := range of.values {
					if _, err := leader.running().Client().KV.Put(c.within(5*time.Second), fmt.Sprintf("k%d", i%100), value); err != nil {
						t.Fatal(err)
					}
				}
				newest, had := leader.running().raft.LastIndex(), last()
				began, takes := time.Now(), time.Duration(of.values*(of.size+200))*time.Second/time.Duration(of.rate)
				c.net.HealAll()
				for limit := 40*time.Second + takes*3/2; last() < newest && time.Since(began) < limit; {
					c.pass(100 * time.Millisecond)
				}
				t.Logf("%d of %d entries in %v, where %v are needed", last()-had, newest-had, time.Since(began), takes)
				if last() < newest {
					t.Errorf("%d of %d entries in %v\n%s", last()-had, newest-had, time.Since(began), c.state())
				}
			})
		})
	}
}
