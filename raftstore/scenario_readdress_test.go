// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"
)

// All servers stop and come back at other addresses. None finds another one, until
// something outside the store reports to them where others are.
func TestScenarioAllMoved(t *testing.T) {
	changesAddresses(t)
	seeds(t, 3, func(t *testing.T, seed uint64) {
		var c *cluster
		seeded := func() bool { return false }
		tune := func(o *Options) {
			o.Others = func() (out []string) {
				if seeded() {
					for _, n := range c.nodes {
						out = append(out, n.host)
					}
				}
				return out
			}
		}
		scenarioOf(t, seed, 3, tune, func(cl *cluster) {
			c = cl
			w := c.work(3)
			c.pass(7 * time.Second) // every server has noted who the others are
			for _, n := range c.nodes {
				n.stop()
			}
			for _, n := range c.nodes {
				n.host = "new " + n.name
			}
			moved := time.Now() // the scenario's
			seeded = func() bool { return time.Since(moved) > 20*time.Second }
			for _, n := range c.nodes {
				n.start()
			}
			c.pass(19 * time.Second)
			for _, n := range c.nodes {
				if lead, _ := n.running().leader.get(); lead.known() {
					t.Fatalf("seed %d: %s knows a leader, at %q", seed, n.name, lead.Address)
				}
			}
			for _, n := range c.nodes {
				c.ready(n)
				c.serves(n)
			}
			t.Logf("seed %d: healed %v after the addresses were given", seed, (time.Since(moved) - 20*time.Second).Round(10*time.Millisecond))
			c.rest(20*time.Second, 3, "a", "b", "c")
			c.pass(5 * time.Second) // each tells the leader its address when there is one
			for _, n := range c.nodes {
				for _, m := range n.running().cluster.Members() {
					if m.Address != "new "+m.Name {
						t.Errorf("seed %d: %s thinks that %s is at %q", seed, n.name, m.Name, m.Address)
					}
				}
			}
			w.stop()
		})
	})
}
