// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// A follower that lags is reached over a narrow link only. It catches up at the speed of the link, whatever is in the
// entries: no message is too large for the time that it has.
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
				last := far.running().replica.raft.LastIndex
				for _, o := range c.others(far) {
					c.net.Rate(o.name, far.name, of.rate)
					c.net.Rate(far.name, o.name, of.rate)
				}
				c.isolate(far)
				value := noise(of.size)
				for i := range of.values {
					testenv.Must(leader.running().Client().KV.Put(c.within(5*time.Second), fmt.Sprintf("k%d", i%100), value))(t)
				}
				newest, had := leader.running().replica.raft.LastIndex(), last()
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

// All links are narrow, and a client writes a value that takes each of them much longer than a leader without progress
// has. The leader keeps its leadership, and the client gets its acknowledgement.
func TestScenarioLargeWriteOverNarrowLinks(t *testing.T) {
	const kb, size = 1 << 10, 1200 << 10
	for _, rate := range []int{256 * kb, 128 * kb, 64 * kb, 48 * kb} {
		t.Run(fmt.Sprintf("%d bytes a second", rate), func(t *testing.T) {
			seeds(t, 2, func(t *testing.T, seed uint64) {
				stage(t, seed, 3+2*int(seed%2), func(o *Options) { o.RequestTimeout = 4 * time.Minute }, func(c *cluster) {
					c.pass(5 * time.Second)
					for _, a := range c.nodes {
						for _, b := range c.others(a) {
							c.net.Rate(a.name, b.name, rate)
						}
					}
					c.pass(time.Second)
					leader := c.leader()
					for _, through := range []*node{leader, c.others(leader)[0]} {
						term, began := leader.term(), time.Now()
						_, err := through.running().Client().KV.Put(c.within(4*time.Minute), "large", noise(size))
						t.Logf("seed %d: through %s, %s leads: %v after %v, %d elections", seed, through.name, leader.name, err, time.Since(began), leader.term()-term)
						if err != nil || leader.term() != term {
							t.Errorf("seed %d: %v, the term was %d and is %d\n%s", seed, err, term, leader.term(), c.state())
						}
					}
				})
			})
		})
	}
}

// Followers without which there is no majority lack much, and are reached over narrow links. The leader keeps its
// leadership while they catch up, although nothing is committed meanwhile and another one could be elected.
func TestScenarioMajorityCatchesUpOverNarrowLinks(t *testing.T) {
	stages(t, 2, 5, nil, func(c *cluster) {
		const rate = 64 << 10
		leader := c.leader()
		others := c.others(leader)
		far, lost := others[:2], others[2]
		for _, f := range far {
			for _, o := range c.others(f) {
				c.net.Rate(o.name, f.name, rate)
				c.net.Rate(f.name, o.name, rate)
			}
		}
		c.isolate(far...)
		for range 40 {
			testenv.Must(leader.running().Client().KV.Put(c.within(5*time.Second), "k", noise(40<<10)))(c)
		}
		term := leader.term()
		lost.crash()
		c.net.HealAll()
		began := time.Now()
		if err := c.writes(leader, 2*time.Minute); err != nil || leader.term() != term {
			c.Errorf("seed %d: %v after %v, the term was %d and is %d\n%s", c.seed, err, time.Since(began), term, leader.term(), c.state())
		}
		c.Logf("seed %d: a write after %v", c.seed, time.Since(began))
	})
}
