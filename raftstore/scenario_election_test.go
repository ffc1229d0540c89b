// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

func TestScenarioClusters(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenarioOf(t, 1, n, func(o *Options) { o.MaxVoters = 7 }, func(c *cluster) {
				w := c.work(3)
				c.pass(2 * time.Second)
				w.stop()
				if c.acked() < 50 {
					t.Errorf("only %d writes were acknowledged", c.acked())
				}
			})
		})
	}
}
