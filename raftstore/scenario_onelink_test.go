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
