// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// newest is the highest term that any server is in.
func (c *cluster) newest() (term uint64) {
	for _, n := range c.nodes {
		term = max(term, n.term())
	}
	return term
}

// Leadership is transferred to a server with a slow disk, beside others that are quick. Its election takes longer than
// they wait for a leader otherwise, and they let it have that.
func TestScenarioTransferToSlowDisk(t *testing.T) {
	for _, flush := range []time.Duration{250 * time.Millisecond, 300 * time.Millisecond} {
		seeds(t, 3, func(t *testing.T, seed uint64) {
			stage(t, seed, 3+2*int(seed%2), nil, func(c *cluster) {
				leader := c.leader()
				slow := c.others(leader)[0]
				slow.faults.DelayFlushes(flush)
				c.pass(20 * time.Second)
				before := c.newest()
				testenv.NoError(t, transferBetween(c.within(10*time.Second), leader.running(), slow.running()))
				c.pass(5 * time.Second)
				if after := c.newest(); !slow.leads() || after != before+1 {
					t.Errorf("seed %d: %s does not lead, whose disk takes %v; term %d became %d\n%s", seed, slow.name, flush, before, after, c.state())
				}
				slow.faults.DelayFlushes(0)
			})
		})
	}
}

// Only a server that cannot keep the leadership reaches all others: its large packets are lost. The leadership does not
// go to it again and again.
func TestScenarioMostConnectedCannotLead(t *testing.T) {
	stages(t, 2, 5, nil, func(c *cluster) {
		leader := c.leader()
		others := c.others(leader)
		cut, connected := others[0], others[1]
		for _, o := range c.others(connected) {
			c.net.Largest(connected.name, o.name, 1200)
			if o != cut {
				c.cutLink(o, cut)
			}
		}
		before := c.newest()
		for began := time.Now(); time.Since(began) < 10*time.Minute; c.pass(200 * time.Millisecond) {
			_, _ = leader.running().Client().KV.Put(c.within(5*time.Second), "small", "v")
			_, _ = leader.running().Client().KV.Put(c.within(5*time.Second), "large", c.large())
		}
		if grown := c.newest() - before; grown > 20 {
			c.Errorf("seed %d: %d elections in ten minutes", c.seed, grown)
		}
		c.net.HealAll()
		for _, o := range c.others(connected) {
			c.net.Largest(connected.name, o.name, 0)
		}
		c.pass(30 * time.Second) // until what is lost for good has been given up
	})
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

// Only a server whose disk stalls now and then reaches all others. The leadership goes to it ever more rarely.
func TestScenarioMostConnectedStallsNowAndThen(t *testing.T) {
	stages(t, 2, 5, nil, func(c *cluster) {
		leader := c.leader()
		others := c.others(leader)
		cut, connected := others[0], others[1]
		for _, o := range c.others(connected, cut) {
			c.cutLink(o, cut)
		}
		before := c.newest()
		for range 40 {
			for i := range 60 { // 15 s
				if i == 48 {
					connected.stalls()
				}
				_, _ = leader.running().Client().KV.Put(c.within(250*time.Millisecond), "small", "v")
				c.pass(250 * time.Millisecond)
			}
			connected.faults.DelayFlushes(0)
		}
		if grown := c.newest() - before; grown > 40 {
			c.Errorf("seed %d: %d elections in ten minutes", c.seed, grown)
		}
		c.net.HealAll()
	})
}
