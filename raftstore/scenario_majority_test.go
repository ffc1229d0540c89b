// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// majorityWithin is how long the servers that are well may take to write, after something has happened.
const majorityWithin = 15 * time.Second

// A minority of the voters has a stalled or full disk, is dead or cut off, and so may be every server without a vote; the disks of the
// others may be slow. Meanwhile votes are given, servers are removed, and leadership is transferred, by the leader itself or on request.
// Whatever comes of it, the servers that are well write within seconds.
func TestScenarioMajorityWrites(t *testing.T) {
	for _, n := range []int{3, 4, 5, 6} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			seeds(t, 2, func(t *testing.T, seed uint64) {
				stage(t, seed, n, nil, func(c *cluster) {
					for range 8 {
						r := round{cluster: c}
						r.play()
						if t.Failed() {
							c.calm()
							return
						}
						r.mend()
					}
				})
			})
		})
	}
}

// round is a time in which the same servers are sick.
type round struct {
	*cluster
	story   []string
	well    []*node
	removed []*node
}

func (r *round) tell(format string, args ...any) {
	r.story = append(r.story, fmt.Sprintf(format, args...))
}

// play makes servers sick and changes the cluster, and wants writes after each.
func (r *round) play() {
	leader := r.leader()
	var voters, others []*node
	for _, n := range r.shuffled() {
		if r.votes(leader, n) {
			voters = append(voters, n)
		} else {
			others = append(others, n)
		}
	}
	sick := voters[:r.rand.IntN((len(voters)-1)/2+1)]
	r.well = voters[len(sick):]
	for _, n := range others {
		if r.rand.IntN(2) == 0 {
			sick = append(sick[:len(sick):len(sick)], n)
		} else {
			r.well = append(r.well[:len(r.well):len(r.well)], n)
		}
	}
	if r.rand.IntN(3) == 0 {
		r.some(5 * time.Second) // all that was written is everywhere
	}
	for _, n := range sick {
		r.sicken(n)
		if r.rand.IntN(2) == 0 {
			r.some(4 * time.Second)
		}
	}
	for _, n := range r.well {
		if r.rand.IntN(4) == 0 {
			d := time.Duration(r.rand.Int64N(int64(300 * time.Millisecond)))
			r.tell("%s takes %v", n.name, d.Round(time.Millisecond))
			n.faults.DelayFlushes(d)
		}
	}
	for range 1 + r.rand.IntN(4) {
		r.change()
		if r.rand.IntN(2) == 0 { // else nothing is written yet
			r.wantWrites()
		}
	}
	r.wantWrites()
}

// sicken makes a server one that cannot count for a majority.
func (r *round) sicken(n *node) {
	switch r.rand.IntN(7) {
	case 0, 1, 2:
		r.tell("%s stalls", n.name)
		n.stalls()
	case 3:
		r.tell("%s seems full", n.name)
		n.faults.SeemFull(true)
	case 4:
		r.tell("%s is full", n.name)
		n.faults.FailWrites(unix.ENOSPC)
	case 5:
		r.tell("%s crashes", n.name)
		n.crash()
	case 6:
		way := r.rand.IntN(3)
		r.tell("%s is cut off (%d)", n.name, way)
		for _, o := range r.others(n) {
			if way != 0 {
				r.net.Cut(o.name, n.name)
			}
			if way != 1 {
				r.net.Cut(n.name, o.name)
			}
		}
	}
}

// change has the cluster's members or leader changed, or lets time pass for the leader to do so.
func (r *round) change() {
	through := r.well[r.rand.IntN(len(r.well))].running()
	of := r.shuffled()[0]
	switch r.rand.IntN(6) {
	case 0:
		r.tell("promote %s: %v", of.name, through.PromoteMember(r.within(8*time.Second), of.name))
	case 1:
		if len(r.removed) > 0 {
			return
		}
		err := through.RemoveMember(r.within(8*time.Second), of.name)
		r.tell("remove %s: %v", of.name, err)
		if err == nil || !strings.Contains(err.Error(), "Nothing was changed") {
			r.removed = append(r.removed, of) // or will be
			r.well = remove(r.well, of)
		}
	case 2:
		for _, n := range r.well {
			if n.leads() {
				r.tell("%s transfers: %v", n.name, n.running().TransferLeadership(r.within(8*time.Second)))
				return
			}
		}
	case 3, 4:
		r.tell("more than a minute")
		r.pass(70 * time.Second)
		r.some(10 * time.Second)
	case 5:
		r.some(20 * time.Second)
	}
}

// some lets up to so much time pass.
func (r *round) some(most time.Duration) { r.pass(time.Duration(r.rand.Int64N(int64(most)))) }

// wantWrites fails unless every server that is well writes in time.
func (r *round) wantWrites() {
	for _, n := range r.well {
		if err := r.writes(n, majorityWithin); err != nil {
			r.Errorf("seed %d: %s: no write within %v at %s, which is well: %v\n%s", r.seed, strings.Join(r.story, "; "), majorityWithin, n.name, err, r.state())
			return
		}
	}
}

// mend makes all well, and has those in again that were removed.
func (r *round) mend() {
	r.net.HealAll()
	for _, n := range r.nodes {
		n.faults.SeemFull(false)
	}
	for _, n := range r.removed {
		n.faults.DelayFlushes(0)
		n.faults.FailWrites(nil)
		n.stop()
		n.wipe()
		n.start(names(r.others(n))...)
	}
	r.calm()
	r.rest(3*time.Minute, len(r.nodes)-(len(r.nodes)+1)%2, names(r.nodes)...)
}

func remove(nodes []*node, n *node) []*node {
	var out []*node
	for _, o := range nodes {
		if o != n {
			out = append(out, o)
		}
	}
	return out
}
