// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// All disks seem full, and nothing is written: no snapshot is made in twenty minutes, which would save no room.
func TestScenarioIdleBesideFullDisks(t *testing.T) {
	stage(t, 1, 3, nil, func(c *cluster) {
		c.fill(c.leader(), 300)
		snapshots := func() (found []string) {
			for _, n := range c.nodes {
				found = append(found, testenv.Must(filepath.Glob(filepath.Join(n.dir, "snapshots", "*")))(t)...)
			}
			return found
		}
		before := snapshots()
		for _, n := range c.nodes {
			n.faults.SeemFull(true)
		}
		for range 20 {
			c.pass(time.Minute)
			if now := snapshots(); !slices.Equal(now, before) {
				t.Fatalf("the snapshots were %v, and are %v", before, now)
			}
		}
	})
}

// The disk of one follower is full, and the other one stores and does not answer questions for a while. Writes go on.
func TestScenarioFullBesideOneWithoutAnswers(t *testing.T) {
	var held heldCalls
	stage(t, 1, 3, held.tune, func(c *cluster) {
		leader := c.leader()
		full, other := c.others(leader)[0], c.others(leader)[1]
		full.faults.SeemFull(true)
		held.to = other.name
		held.begin()
		for range 20 {
			c.serves(leader)
			c.pass(time.Second)
		}
		held.end()
		full.faults.SeemFull(false)
	})
}
