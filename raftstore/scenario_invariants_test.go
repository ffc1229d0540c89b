// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// What must hold in every scenario, whatever it is about:
//
//   - raft goes by the newest members that the log has, or the snapshot;
//   - what a server has applied never falls while it runs, nor does its revision;
//   - when a majority of the voters is alive and connected, it has a leader and is
//     up to date within seconds, without anybody writing;
//   - when all is quiet, all servers have the same members.

const (
	// guardTick is how often a running server is looked at. Raft goes by new
	// members at once when its log has them, so a difference that two looks find
	// is none of a moment.
	guardTick = 100 * time.Millisecond
	// liveWithin is how soon a majority must be able to work again. Raft itself
	// may pause for 10 s after many failures.
	liveWithin = 15 * time.Second
)

// guard looks at a running server until ctx ends.
func (n *node) guard(ctx context.Context, s *Store) {
	ticker := time.NewTicker(guardTick)
	defer ticker.Stop()
	var applied, view uint64
	var revision int64
	wrong, wrongAt := "", uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		nowApplied, nowView := s.replica.raft.AppliedIndex(), s.replica.fsm.view()
		if nowApplied < applied || nowView.Applied() < view || nowView.Revision() < revision {
			n.c.Errorf("seed %d: %s went back: raft has applied %d after %d; the state is of entry %d after %d, revision %d after %d",
				n.c.seed, n.name, nowApplied, applied, nowView.Applied(), view, nowView.Revision(), revision)
		}
		applied, view, revision = nowApplied, nowView.Applied(), nowView.Revision()
		problem, index := s.cluster.CheckMembers()
		if ctx.Err() != nil {
			return
		}
		if problem != "" && wrong != "" && wrongAt == index {
			n.c.Errorf("seed %d: %s goes by other members than its log has: %s", n.c.seed, n.name, problem)
			return
		}
		wrong, wrongAt = problem, index
	}
}

// lively waits for servers to be able to work; then it cuts off a minority, at
// random, and waits for the others to be. No client writes meanwhile.
func (c *cluster) lively(alive []*node) {
	c.Helper()
	c.live(alive)
	// A change of members may not be everywhere yet: it has to be a majority
	// by any server's members.
	var with, rest []*node
	order := slices.Clone(alive)
	c.rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, n := range order {
		if c.majority(with, alive) {
			rest = append(rest, n)
		} else {
			with = append(with, n)
		}
	}
	c.endIf(!c.majority(with, alive), "too few voters are left")
	hosts := func(nodes []*node) []string {
		var out []string
		for _, n := range nodes {
			out = append(out, n.host)
		}
		return out
	}
	c.net.Partition(hosts(with), hosts(rest))
	c.live(with)
	c.net.HealAll()
	c.live(alive)
}

// majority says whether servers are a majority of the voters, by the members that
// any of them all goes by.
func (c *cluster) majority(nodes, of []*node) bool {
	ids := make(map[raft.ServerID]bool)
	for _, n := range nodes {
		ids[n.running().replica.id] = true
	}
	for _, o := range of {
		voters, among := 0, 0
		for _, server := range o.running().replica.raft.GetConfiguration().Configuration().Servers {
			if server.Suffrage == raft.Voter {
				voters++
				if ids[server.ID] {
					among++
				}
			}
		}
		if voters > 0 && among <= voters/2 {
			return false
		}
	}
	return true
}

// live waits until one of the servers leads and they all have applied everything.
func (c *cluster) live(nodes []*node) {
	c.Helper()
	c.eventually(fmt.Sprintf("%v can work", names(nodes)), liveWithin, func() bool {
		var leader *node
		for _, n := range nodes {
			if n.leads() && (leader == nil || n.term() > leader.term()) {
				leader = n
			}
		}
		if leader == nil {
			return false
		}
		for _, n := range nodes {
			if n.term() != leader.term() || n.running().replica.raft.AppliedIndex() != leader.running().replica.raft.LastIndex() {
				return false
			}
		}
		return true
	})
}

// sameMembers compares what servers think the members are. All is quiet.
func (c *cluster) sameMembers(nodes []*node) {
	c.Helper()
	_, want := nodes[0].running().replica.dir.Log.Members()
	for _, n := range nodes {
		problem, index := n.running().cluster.CheckMembers()
		if problem != "" || index != want {
			c.Errorf("seed %d: %s and %s think differently of the members (entries %d and %d) %s\n%s", c.seed, n.name, nodes[0].name,
				index, want, problem, c.state())
			return
		}
	}
}
