// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Members change while answers are lost, snapshots are slow, logs are short,
// disks are slow and servers crash, at random. After each round all is mended, and
// any majority has to work.
func TestScenarioLostAnswers(t *testing.T) {
	scenarios(t, 20, 3, func(c *cluster) {
		r := &losses{cluster: c, leaving: make(map[*node]bool)}
		for range 4 {
			c.keep(c.rand.Uint64N(4))
			if c.rand.IntN(4) > 0 {
				r.lag()
			} else {
				w := c.work(2)
				for range 20 {
					r.upTo(400 * time.Millisecond)
					r.trouble()
				}
				w.stop()
			}
			r.mend()
			c.lively(c.nodes)
		}
	})
}

// losses plays that scenario.
type losses struct {
	*cluster
	joined int
	// leaving are servers whose removal was asked for, and not answered.
	leaving map[*node]bool
}

// upTo lets time pass, at random.
func (r *losses) upTo(most time.Duration) { r.pass(time.Duration(r.rand.Int64N(int64(most)))) }

// lag makes a follower store more than its leader learns, in most ways in which
// that can happen: it goes through the steps, with chance pauses, and leaves some
// of them out.
func (r *losses) lag() {
	leader := r.leader()
	follower := r.others(leader)[r.rand.IntN(len(r.nodes)-1)]
	flush := time.Second + time.Duration(r.rand.Int64N(int64(4*time.Second)))
	for _, step := range []func(){
		func() { follower.faults.DelayFlushes(flush) },
		func() { r.burst(leader) },
		func() { r.snapshot(leader, 20*time.Second) },
		func() { r.change(leader, follower) },
		func() { r.burst(leader) },
		func() { r.upTo(3 * flush) },
		func() { r.net.Cut(follower.name, leader.name) },
		func() { r.upTo(3 * flush) },
		func() { follower.faults.DelayFlushes(0) },
		func() { r.upTo(40 * time.Second) },
		func() {
			if r.rand.IntN(2) == 0 { // else the leader's snapshot may be the newer one
				r.snapshot(follower, time.Second)
			}
		},
		func() { r.upTo(20 * time.Second) },
	} {
		if r.rand.IntN(8) > 0 {
			step()
		}
		r.upTo(20 * time.Millisecond)
	}
}

// burst writes one entry after the other.
func (r *losses) burst(leader *node) {
	kv := leader.running().Client().KV
	for range r.rand.IntN(150) {
		if o := r.put(r.within(time.Second), leader.name, kv, "burst", fmt.Sprintf("burst %d", r.clock.Add(1))); o.err != nil {
			return
		}
	}
}

// snapshot begins a snapshot, which may be slow.
func (r *losses) snapshot(n *node, most time.Duration) {
	n.faults.DelaySnapshots(time.Duration(r.rand.Int64N(int64(most))))
	s := n.running()
	r.tasks.Go(func() { _ = s.snapshotter.takeSnapshot() }) // raft may not be able to yet
}

// change changes the members: a server joins, or one comes back as another member.
func (r *losses) change(leader *node, but ...*node) {
	if r.joined < 4 && r.rand.IntN(3) > 0 {
		r.join(string(rune('d'+r.joined)), leader.name)
		r.joined++
		r.upTo(3 * time.Second)
		return
	}
	n := r.shuffled()[0]
	if n == leader || contains(but, n) || len(r.nodes) < 4 {
		return
	}
	// Without an answer it may be done later.
	r.leaving[n] = leader.running().cluster.RemoveMember(r.within(2*time.Second), n.name) != nil
	if !r.leaving[n] {
		n.replace()
	}
}

// replace makes a server another member, with an empty disk.
func (n *node) replace() {
	n.stop()
	n.wipe()
	n.start(names(n.c.others(n))...)
}

// trouble does one thing, whatever else is going on.
func (r *losses) trouble() {
	n := r.shuffled()[0]
	var leader *node
	for _, o := range r.nodes {
		if o.leads() {
			leader = o
		}
	}
	switch what := r.rand.IntN(10); {
	case what < 2:
		n.faults.DelayFlushes(time.Duration(r.rand.Int64N(int64(500 * time.Millisecond))))
	case what == 2:
		n.faults.DelayFlushes(0)
	case what == 3:
		r.snapshot(n, 5*time.Second)
	case what == 4:
		r.net.HealAll()
	case what == 5:
		if r.rand.IntN(2) == 0 {
			n.crash()
			n.start()
		}
	case leader == nil:
	case what == 6:
		r.burst(leader)
	case what == 7:
		r.change(leader)
	case n != leader:
		r.net.Cut(n.name, leader.name) // what n answers
	}
}

// mend ends what the others did.
func (r *losses) mend() {
	r.net.HealAll()
	for _, n := range r.nodes {
		n.mendDisk()
	}
	for n, leaving := range r.leaving {
		if !leaving {
			continue
		}
		r.eventually("a server is taken out", 30*time.Second, func() bool {
			// It may lead by now: then it takes itself out.
			err := r.leader().running().cluster.RemoveMember(r.within(10*time.Second), n.name)
			return err == nil || status.Code(err) == codes.NotFound
		})
		r.leaving[n] = false
		n.replace()
	}
}
