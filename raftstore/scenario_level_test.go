// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// knowing makes the servers that are started next programs with this newest level.
func (c *cluster) knowing(newest int) { c.tune = func(o *Options) { o.newest = newest } }

// restart starts servers again, one after the other, with programs of this newest level.
func (c *cluster) restart(newest int, nodes ...*node) {
	c.Helper()
	c.knowing(newest)
	for _, n := range nodes {
		n.stop()
		n.start()
		c.ready(n)
	}
}

// level waits until all servers that run have a level, in the store and in the directory.
func (c *cluster) level(want int) {
	c.Helper()
	c.eventually("the servers have the level", 10*time.Second, func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *node) bool {
			s := n.running()
			return s != nil && (s.Status().Level != want || s.replica.dir.Level() != want)
		})
	})
}

// announced waits until all servers know what newest levels the members have, by their names in order.
func (c *cluster) announced(want ...int) {
	c.Helper()
	c.eventually("the members have announced their newest levels", 10*time.Second, func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *node) bool {
			s := n.running()
			if s == nil {
				return false
			}
			members := s.cluster.Members()
			slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
			var got []int
			for _, m := range members {
				got = append(got, m.Newest)
			}
			return !slices.Equal(got, want)
		})
	})
}

// raise asks a server to raise the level.
func (c *cluster) raise(n *node, to int) error {
	return n.running().cluster.RaiseLevel(c.within(10*time.Second), to)
}

// Servers are upgraded one after the other, and go back again, as often as one likes: only a raise changes the level,
// and it waits for all members. After it none can go back.
func TestScenarioLevels(t *testing.T) {
	changesAddresses(t)
	scenarioOf(t, 1, 3, func(o *Options) { o.newest = 1 }, func(c *cluster) {
		a, b := c.nodes[0], c.nodes[1]
		w := c.work(2)
		c.level(1)
		testenv.WantError(t, c.raise(a, 2), "level 2 is not known to the programs of these servers: a (level 1), b (level 1), c (level 1)")
		c.restart(2, c.nodes...)
		c.announced(2, 2, 2)
		c.level(1)

		c.restart(1, c.nodes...)
		c.announced(1, 1, 1)
		c.restart(2, c.nodes...)
		c.announced(2, 2, 2)

		c.restart(1, b)
		c.announced(2, 1, 2)
		b.stop() // it counts while it is down, too
		hold := "level 2 is not known to the programs of these servers: b (level 1)"
		testenv.WantError(t, c.raise(c.others(b)[0], 2), hold)
		testenv.WantError(t, c.others(b)[1].running().cluster.CheckRaise(c.within(time.Second), 2), hold)
		c.knowing(2)
		b.start()
		c.ready(b)
		c.announced(2, 2, 2)
		testenv.NoError(t, a.running().cluster.CheckRaise(c.within(time.Second), 2))
		c.level(1)
		for range 2 {
			testenv.NoError(t, c.raise(b, 2))
			c.level(2)
		}
		testenv.WantError(t, c.raise(b, 4), "is raised by one at a time")
		w.stop()

		leader := c.leader()
		address := withLevel(raftAddress("d.OLD", "d"), 1)
		_, err := peersOf(leader.running()).membership.serveJoin(c.within(time.Second), joinCall{ID: "d.OLD", Address: string(address)})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "too old") {
			t.Errorf("a server joins that cannot read what is written: %v", err)
		}
		old := c.others(leader)[0]
		old.stop()
		identity := filepath.Join(old.dir, "IDENTITY")
		before := testenv.Must(os.ReadFile(identity))(t)
		c.knowing(1)
		if format := (*FormatError)(nil); !errors.As(old.tryStart(), &format) {
			t.Error("a server that cannot read what is written was started")
		}
		testenv.True(t, bytes.Equal(before, testenv.Must(os.ReadFile(identity))(t)), "the refused start changed the identity")
		c.restart(2, old)
		c.level(2)
		c.serves(leader)
	})
}

// A server that was down while the level was raised does not learn of that when it comes back with the version before.
// It gets nothing that it cannot read, and catches up as soon as its program can.
func TestScenarioMissedRaise(t *testing.T) {
	changesAddresses(t)
	scenarioOf(t, 1, 3, func(o *Options) { o.newest = 1 }, func(c *cluster) {
		c.restart(2, c.nodes...)
		c.announced(2, 2, 2)
		missed := c.others(c.leader())[0]
		missed.stop()
		others := c.others(missed)
		testenv.NoError(t, c.raise(others[0], 2))
		c.knowing(1)
		missed.start()
		c.eventually("the server is refused with words", 10*time.Second, func() bool {
			return strings.Contains(missed.running().Health().JoinRefused(), "is too old: it knows levels up to 1, and the cluster has level 2")
		})
		c.serves(others...)
		testenv.Equal(t, missed.running().Status().Level, 1, "the server that missed the raise has level")
		c.restart(2, missed)
		c.level(2)
	})
}

// A new cluster has the newest level of the program that makes it, and so has a server that joins it. The server's
// folder learns of it.
func TestScenarioNewClusterHasNewestLevel(t *testing.T) {
	var mu sync.Mutex
	noted := map[string][]int{}
	scenarioOf(t, 1, 3, func(o *Options) {
		o.newest = 2
		o.OnLevel = func(level int) error {
			mu.Lock()
			defer mu.Unlock()
			if noted[o.NodeID] = append(noted[o.NodeID], level); len(noted[o.NodeID]) == 1 {
				return errors.New("the disk is full")
			}
			return nil
		}
	}, func(c *cluster) {
		c.level(2)
		c.eventually("the folders have it", 10*time.Second, func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, levels := range noted {
				if len(levels) < 2 || levels[len(levels)-1] != 2 {
					return false
				}
			}
			return len(noted) == 3
		})
		n := c.nodes[1]
		testenv.True(t, strings.HasSuffix(string(raftAddressOf(n)), "@2"), "the address %s does not announce level 2", raftAddressOf(n))
	})
}

// A disk that is full or read-only for long does not fill the log: each trouble is logged once.
func TestTroubleWithTheLevelIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer // the handler writes a line at a time
	recorded := make(chan struct{})
	tries := 0
	s := openStore(t, Options{Dir: t.TempDir(), newest: 2, Logger: slog.New(slog.NewTextHandler(&log, nil)), OnLevel: func(int) error {
		if tries++; tries < 3 {
			return errors.New("the disk is full")
		}
		close(recorded)
		return nil
	}})
	<-recorded
	testenv.NoError(t, s.Close(t.Context()))
	testenv.Equal(t, strings.Count(log.String(), "the disk is full"), 1, "times that the trouble was logged")
}

func raftAddressOf(n *node) string { return string(n.running().replica.address) }

// Clients can neither write the level nor remove it.
func TestClientsDoNotWriteTheLevel(t *testing.T) {
	for newest, removable := range map[int]bool{1: true, 2: false} {
		s := openStore(t, Options{Dir: t.TempDir(), newest: newest})
		api := s.API()
		put := &pb.PutRequest{Key: []byte(level.Key), Value: []byte("7")}
		testenv.WantError(t, testenv.Err(api.Put(t.Context(), put)), "only by coracle upgrade raise")
		ops := []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}}
		testenv.WantError(t, testenv.Err(api.Txn(t.Context(), &pb.TxnRequest{Failure: ops, Success: ops})), "only by coracle upgrade raise")
		for _, r := range []*pb.DeleteRangeRequest{
			{Key: []byte(level.Key)}, {Key: []byte{0}, RangeEnd: []byte{0}}, {Key: []byte("/coracle/"), RangeEnd: []byte("/coracle0")},
		} {
			_, err := api.DeleteRange(t.Context(), r)
			testenv.Equal(t, err == nil, removable, "at level %d, removing %q to %q is allowed:", newest, r.Key, r.RangeEnd)
		}
		for _, r := range []*pb.DeleteRangeRequest{
			{Key: []byte("/a")}, {Key: []byte("/coracle/"), RangeEnd: []byte(level.Key)}, {Key: []byte("/coracle/level/"), RangeEnd: []byte{0}},
		} {
			testenv.NoError(t, testenv.Err(api.DeleteRange(t.Context(), r)))
		}
		testenv.Equal(t, s.Cluster().Level(), newest, "the level is")
	}
}
