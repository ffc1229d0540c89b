// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/peer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What is added to a message follows what the message has without a gap, takes no more memory than it may, and is
// nothing in another term.
func TestEntriesBehind(t *testing.T) {
	stage(t, 1, 2, nil, func(c *cluster) {
		leader := c.leader()
		s := leader.running()
		first := s.replica.raft.LastIndex()
		for range 20 {
			testenv.Must(s.Client().KV.Put(c.within(5*time.Second), "k", strings.Repeat("v", 10<<10)))(t)
		}
		term, last := s.replica.raft.CurrentTerm(), s.replica.raft.LastIndex()
		for _, bytes := range []int{-1, 0, 1 << 10, 25 << 10, 100 << 10, 1 << 30} {
			got := peersOf(s).entriesBehind(term, first, bytes)
			took := 0
			for i, e := range got {
				took += peer.EntryBytes(e)
				testenv.True(t, e.Index == first+1+uint64(i), "entry %d is at place %d behind %d", e.Index, i, first)
			}
			if took > max(bytes, 0) || took < bytes-11<<10 && uint64(len(got)) < last-first {
				t.Errorf("%d bytes in %d of %d entries, where %d may be", took, len(got), last-first, bytes)
			}
		}
		testenv.Equal(t, len(peersOf(s).entriesBehind(term-1, first, 1<<30)), 0, "entries for a term that is over:")
	})
}

// TestEntriesBehindSnapshot: of a snapshot's last entry the log may have nothing but the term, and a follower never
// gets that as an entry.
func TestEntriesBehindSnapshot(t *testing.T) {
	stage(t, 1, 2, nil, func(c *cluster) {
		leader := c.leader()
		s := leader.running()
		for _, keep := range []uint64{128, 1, 0} {
			s.replica.dir.Log.SetTrailing(keep, 0)
			c.fill(leader, 10)
			c.pass(time.Second)
			var last raft.Log
			testenv.NoError(t, peersOf(s).logs.GetLog(s.replica.raft.AppliedIndex(), &last))
			testenv.NoError(t, s.snapshotter.takeSnapshot())
			end, _ := s.replica.dir.Log.Snapshot()
			testenv.Require(t, end == last.Index, "the snapshot ends with entry %d, want %d", end, last.Index)
			got := peersOf(s).entriesBehind(s.replica.raft.CurrentTerm(), end-1, 1<<20)
			switch {
			case keep == 0 && len(got) > 0:
				t.Errorf("entry %d has type %v and %d bytes, where the log has none", got[0].Index, got[0].Type, len(got[0].Data))
			case keep > 0 && (len(got) != 1 || !bytes.Equal(got[0].Data, last.Data)):
				t.Errorf("with %d entries kept: %v", keep, got)
			}
		}
	})
}

// The same of a follower that is cut off when it comes back.
func TestScenarioRestartedFollowerIsNotReadTooEarly(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		leader := c.leader()
		away := c.others(leader)[0]
		kv := leader.running().Client().KV
		c.put(c.within(time.Second), leader.name, kv, "k", "old")
		away.stop()
		c.put(c.within(time.Second), leader.name, kv, "k", "new")
		c.isolate(away)
		away.start()
		client := away.running().Client()
		short := c.within(2 * time.Second)
		if got, err := client.KV.Get(short, "k", clientv3.WithSerializable()); err == nil {
			t.Errorf("cut off, it served revision %d", got.Header.Revision)
		}
		done := make(chan clientv3.WatchChan)
		go func() { done <- client.Watch(c.ctx, "k") }()
		c.pass(time.Second)
		c.net.HealAll()
		watch := <-done
		if got, err := client.KV.Get(c.within(time.Minute), "k", clientv3.WithSerializable()); err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "new" {
			t.Errorf("%v, %v", got, err)
		}
		c.put(c.within(time.Minute), leader.name, kv, "k", "newest")
		if events := collect(c.within(time.Minute), t, watch, 1); string(events[0].Kv.Value) != "newest" {
			t.Errorf("a watch from now on began with %q", events[0].Kv.Value)
		}
	})
}
