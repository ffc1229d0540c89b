// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// packedFormat is the first byte of a packed log entry, and packedState the first bytes of a packed snapshot.
const (
	packedFormat = 2
	packedState  = "\xff\x06\x00\x00S2sTwO"
)

// Servers change between an older program and a newer one, crash, are cut off and take snapshots, while the level is
// raised at random. In this test alone, packing is a form of level 2. No server has an entry or a snapshot that its
// program cannot read, the level never falls, and no write is lost.
func TestScenarioRandomLevels(t *testing.T) {
	changesAddresses(t)
	mvcc.Since.Formats = map[byte]int{packedFormat: 2}
	defer func() { mvcc.Since.Formats = nil }()
	scenariosOf(t, 2, 5, func(o *Options) { o.newest = 1 }, func(c *cluster) {
		l := &programs{cluster: c, newest: make(map[*node]int), before: make(map[*node]uint64), stopped: make(map[*node]*atomic.Bool)}
		w := c.work(3)
		for range 60 {
			c.pass(time.Duration(c.rand.Int64N(int64(400 * time.Millisecond))))
			l.strike()
			l.check()
		}
		w.stop()
		c.net.HealAll()
		for _, n := range c.nodes {
			l.start(n, 2)
		}
		c.eventually("the level can be raised", time.Minute, func() bool { return c.raise(c.leader(), 2) == nil })
		c.level(2)
		l.fill()
		l.check()
	})
}

// programs is a cluster whose servers' programs have different newest levels.
type programs struct {
	*cluster
	newest  map[*node]int
	before  map[*node]uint64       // the end of the log when the program started: up to there, a newer one may have written it
	stopped map[*node]*atomic.Bool // the program stopped, since it does not know the cluster's level
	level   int                    // the highest that a raise has had as its result
}

// start starts a server, or starts it again, with a program of this newest level. A directory of level 2 is refused by
// the older program, and gets the newer one.
func (l *programs) start(n *node, newest int) {
	n.stop()
	stopped := new(atomic.Bool)
	l.stopped[n] = stopped
	for ; ; newest++ {
		l.tune = func(o *Options) {
			o.newest = newest
			o.outdated = func(string) {
				stopped.Store(true)
				runtime.Goexit()
			}
		}
		format := (*FormatError)(nil)
		err := n.tryStart()
		if newest == 1 && errors.As(err, &format) {
			continue
		}
		testenv.NoError(l, err, "start %s", n.name)
		l.newest[n], l.before[n] = newest, testenv.Must(n.store.replica.dir.Log.LastIndex())(l)
		return
	}
}

func (l *programs) strike() {
	nodes := l.shuffled()
	n := nodes[0]
	switch l.rand.IntN(10) {
	case 0, 1:
		l.start(n, 1)
	case 2, 3, 4:
		l.start(n, 2)
	case 5:
		if n.running() != nil {
			n.crash()
		}
	case 6:
		at := 1 + l.rand.IntN(2)
		l.partition(nodes[:at], nodes[at:])
	case 7:
		l.net.HealAll()
	case 8:
		if s := n.running(); s != nil {
			s.replica.dir.Log.SetTrailing(5, 0)
			_ = s.snapshotter.takeSnapshot() // raft may not be able to yet
		}
	case 9:
		if n.running() != nil && n.running().cluster.RaiseLevel(l.within(2*time.Second), 2) == nil {
			l.level = 2
		}
	}
	l.fill()
}

// fill writes what is worth packing.
func (l *programs) fill() {
	for _, n := range l.shuffled()[:2] {
		if s := n.running(); s != nil {
			value := fmt.Sprintf("%d %s", l.clock.Add(1), strings.Repeat("packed ", 300))
			l.put(l.within(time.Second), n.name, s.Client().KV, "large", value) // there may be no leader
		}
	}
}

// check looks at the log and the snapshot of each server that runs.
func (l *programs) check() {
	l.Helper()
	for _, n := range l.nodes {
		s := n.running()
		if s == nil {
			continue
		}
		if l.stopped[n] != nil && l.stopped[n].Load() {
			l.start(n, 2)
			continue
		}
		level := s.Status().Level
		l.endIf(level > max(1, l.newest[n]), "%s has level %d, and knows %d", n.name, level, l.newest[n])
		if lead := s.Status().Leadership; lead.Leader {
			l.endIf(level < l.level && s.cluster.replica.raft.VerifyLeader().Error() == nil, "%s leads at level %d after %d", n.name, level, l.level)
		}
		if l.newest[n] == 2 {
			continue
		}
		first, _ := s.replica.dir.Log.FirstIndex()
		last, _ := s.replica.dir.Log.LastIndex()
		for i := max(first, l.before[n]+1); i <= last; i++ {
			var e raft.Log
			if s.replica.dir.Log.GetLog(i, &e) == nil && e.Type == raft.LogCommand {
				l.endIf(!mvcc.Plain(e.Data), "%s has entry %d in a form that its program cannot read", n.name, i)
			}
		}
		list, err := s.replica.dir.Snapshots.List()
		if err != nil || len(list) == 0 {
			continue
		}
		if _, r, err := s.replica.dir.Snapshots.Open(list[0].ID); err == nil {
			start := make([]byte, len(packedState))
			_, err = io.ReadFull(r, start)
			l.endIf(err == nil && string(start) == packedState, "%s has a snapshot in a form that its program cannot read", n.name)
			testenv.Check(l, r.Close())
		}
	}
}
