// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"
)

// cutLink lets nothing pass between two servers.
func (c *cluster) cutLink(a, b *node) {
	c.net.Cut(a.name, b.name)
	c.net.Cut(b.name, a.name)
}

// linkCutWithin bounds how long a server may be without a leader when only its link to the leader is cut.
const linkCutWithin = 8 * time.Second

// A member is lost to all others for some seconds, again and again, by its links or by a restart. The leader keeps the
// leadership each time the member is back, although another server may reach that one a moment earlier.
func TestScenarioMemberIsBack(t *testing.T) {
	scenarios(t, 5, 3, func(c *cluster) {
		leader := c.leader()
		lost := c.others(leader)[0]
		term := leader.term()
		for range 60 {
			restarts := c.rand.IntN(2) == 0
			if restarts {
				lost.crash()
			} else {
				c.isolate(lost)
			}
			c.pass(time.Duration(c.rand.Int64N(int64(10 * time.Second))))
			if restarts {
				lost.start()
			} else {
				c.net.HealAll()
			}
			c.pass(3 * time.Second)
			if now := c.leader().term(); now != term {
				c.Fatalf("seed %d: term %d became %d when a lost member came back (restarted: %v)\n%s", c.seed, term, now, restarts, c.state())
			}
		}
	})
}

// Links between single servers are cut at random, now and then with a crash, while clients work. One server, which
// changes, reaches all that run: then all of them serve within seconds.
func TestScenarioSingleLinks(t *testing.T) {
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenarios(t, 2, n, func(c *cluster) {
				w := c.work(2)
				for range 5 {
					c.net.HealAll()
					c.pass(time.Duration(c.rand.Int64N(int64(8 * time.Second))))
					nodes := c.shuffled()
					running := nodes
					if last := nodes[n-1]; c.rand.IntN(4) == 0 {
						last.crash()
						running = nodes[:n-1]
					}
					for i, a := range running[1:] { // the first keeps its links
						for _, b := range running[1+i+1:] {
							if c.rand.IntN(2) == 0 {
								c.cutLink(a, b)
							}
						}
					}
					c.pass(2 * linkCutWithin) // most of a majority's elections are over, too
					c.serves(running...)
					if last := nodes[n-1]; last.running() == nil {
						last.start()
					}
				}
				w.stop()
			})
		})
	}
}
