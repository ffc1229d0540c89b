// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// The leader's disk takes five seconds for what it has to write: leadership
// moves away, nothing exits, what was written in the leader's term does not
// appear afterwards, and even through the stalled server writes go on.
func TestScenarioStalledLeader(t *testing.T) {
	scenarios(t, 4, 3, func(c *cluster) {
		w := c.work(3)
		c.pass(time.Second)
		leader := c.leader()
		term := leader.term()
		leader.faults.DelayFlushes(5 * time.Second)
		stalled := time.Now()
		time.AfterFunc(5*time.Second, func() { leader.faults.DelayFlushes(0) })
		late := make(chan *operation, 1)
		go func() {
			kv := leader.running().Client().KV
			late <- c.fenced(c.within(20*time.Second), leader.name, kv, "fenced", fmt.Sprintf("late %d", c.seed), term)
		}()
		others := c.others(leader)
		next := c.leader(others...)
		c.serves(others...)
		if took := time.Since(stalled); took > 2*time.Second {
			c.Errorf("seed %d: the leadership moved after %v", c.seed, took)
		}
		// It is a fenced write of the next leader that the late one must not follow.
		if o := c.fenced(c.within(time.Second), next.name, next.running().Client().KV, "fenced", fmt.Sprintf("next %d", c.seed), next.term()); o.err != nil {
			c.Errorf("seed %d: %v", c.seed, o)
		}
		c.eventually("the stalled server knows that it does not lead", time.Second, func() bool { return !leader.leads() })
		c.serves(leader)
		if took := time.Since(stalled); took > 6*time.Second {
			c.Errorf("seed %d: a write through the stalled server took %v", c.seed, took)
		}
		c.pass(2 * time.Second)
		c.serves(leader)
		<-late
		w.stop()
	})
}

// spoil damages the newest part of a stopped server's log, in its middle.
func (n *node) spoil() {
	files, err := filepath.Glob(filepath.Join(n.dir, "log", "*.segment"))
	if err != nil || len(files) == 0 {
		n.c.Fatal("no log: ", err)
	}
	f := testenv.Must(os.OpenFile(files[0], os.O_RDWR, 0))(n.c)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 300)
	b[0] ^= 0x10
	_, err2 := f.WriteAt(b, 300)
	testenv.NoError(n.c, errors.Join(err, err2, f.Close()))
}

// With no server to ask, damage is an error, and nothing is touched.
func TestScenarioDamageAlone(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			scenario(t, 1, n, func(c *cluster) {
				c.serves(c.nodes[0])
				c.pass(7 * time.Second)
				for _, o := range c.nodes {
					o.stop()
				}
				victim := c.nodes[0]
				victim.spoil()
				err := victim.tryStart()
				if damage := (*DamageError)(nil); !errors.As(err, &damage) {
					t.Errorf("a damaged directory was opened: %v", err)
				}
				if moved, _ := filepath.Glob(victim.dir + ".damaged-*"); len(moved) != 0 {
					t.Errorf("moved away: %v", moved)
				}
				victim.spoil() // again: as it was
			})
		})
	}
}

// TestFirstStartOnFullDisk: it waits for room, no longer than it is asked to,
// and can be tried again.
func TestFirstStartOnFullDisk(t *testing.T) {
	stage(t, 1, 0, nil, func(c *cluster) {
		n := c.add("new")
		n.faults.FailWrites(unix.ENOSPC)
		ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
		defer cancel()
		start := time.Now()
		if s, err := Open(ctx, n.options()); !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("%v, %v", s, err)
		}
		if took := time.Since(start); took < 5*time.Second || took > 6*time.Second {
			c.Errorf("it took %v", took)
		}
		n.faults.FailWrites(nil)
		n.start()
		c.ready(n)
	})
}

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
