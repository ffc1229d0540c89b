// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Large packets from the leader's machine are lost, and its heartbeats arrive. Another server leads soon, and writes go
// on through it.
func TestScenarioLargePacketsLost(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		stage(t, seed, 3+2*int(seed%2), nil, func(c *cluster) {
			c.pass(5 * time.Second)
			leader := c.leader()
			others := c.others(leader)
			for _, o := range others {
				c.net.Largest(leader.name, o.name, 1200)
			}
			large := c.large()
			began := time.Now()
			if _, err := leader.running().Client().KV.Put(c.within(time.Minute), "large", large); err != nil {
				t.Logf("seed %d: the first write: %v", seed, err)
			}
			next := c.leader(others...)
			testenv.Check(t, testenv.Err(next.running().Client().KV.Put(c.within(time.Minute), "large", large)), "seed %d", seed)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("seed %d: a write after %v", seed, took)
			}
			term := next.term()
			for range 30 {
				c.pass(2 * time.Second)
				testenv.Check(t, testenv.Err(next.running().Client().KV.Put(c.within(5*time.Second), "large", large)), "seed %d", seed)
			}
			if grown := c.leader(others...).term() - term; grown > 0 {
				t.Errorf("seed %d: %d elections after the first", seed, grown)
			}
			for _, o := range others {
				c.net.Largest(leader.name, o.name, 0)
			}
		})
	})
}

// large is a value that fits no packet, however it is compressed.
func (c *cluster) large() string {
	b := make([]byte, 5000)
	for i := range b {
		b[i] = byte(c.rand.Uint32())
	}
	return hex.EncodeToString(b)
}

// loseLarge loses packets above a size wherever they come from; 0 loses none.
func (c *cluster) loseLarge(bytes int) {
	for _, a := range c.nodes {
		for _, b := range c.others(a) {
			c.net.Largest(a.name, b.name, bytes)
		}
	}
}
