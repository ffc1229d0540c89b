// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"
)

// newest is the highest term that any server is in.
func (c *cluster) newest() (term uint64) {
	for _, n := range c.nodes {
		term = max(term, n.term())
	}
	return term
}

// The link between the leader and another server is cut, and the disk of the one that both reach is full, so that it
// cannot lead. It serves what needs no room all the same: the one that is cut off sends its clients there.
func TestScenarioCutOffBesideFull(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		leader := c.leader()
		cut, full := c.others(leader)[0], c.others(leader)[1]
		full.faults.SeemFull(true)
		c.cutLink(leader, cut)
		c.eventually("it knows that it is cut off", time.Minute, func() bool { return cut.running().Health().CutOff() })
		if to := cut.running().Health().OtherLeader(); to != full.name || !leader.leads() {
			t.Errorf("it sends its clients to %q\n%s", to, c.state())
		}
		if _, err := full.running().Client().KV.Get(c.within(5*time.Second), "k"); err != nil {
			t.Errorf("a read: %v\n%s", err, c.state())
		}
		if _, err := full.running().Client().KV.Delete(c.within(5*time.Second), "k"); err != nil {
			t.Errorf("a deletion: %v\n%s", err, c.state())
		}
		full.faults.SeemFull(false)
		c.eventually("it writes again", 10*time.Second, func() bool {
			_, err := full.running().Client().KV.Put(c.within(5*time.Second), "k", "v")
			return err == nil
		})
		c.net.HealAll()
	})
}
