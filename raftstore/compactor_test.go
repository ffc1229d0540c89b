// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// compactorState is a state that a compactor looks at.
type compactorState struct {
	*compactor
	testing.TB
	state *mvcc.State
}

func newCompactorState(t testing.TB, limit int64) *compactorState {
	h := &compactorState{TB: t, state: mvcc.New()}
	h.compactor = &compactor{
		clock: clock.RealClock{}, age: time.Hour, bytes: limit, quota: func() int64 { return 1 << 50 }, wake: make(chan struct{}, 1),
		view: func() *mvcc.View { return h.state.Freeze() },
	}
	h.compactor.compact = func(_ context.Context, rev int64) error {
		return h.state.Apply(&pb.CompactionRequest{Revision: rev}).Err
	}
	h.compactor.setMark = func(_ context.Context, value string) (int64, error) {
		res := h.state.Apply(&pb.PutRequest{Key: []byte(compactKey), Value: []byte(value)})
		return h.view().Revision(), res.Err
	}
	return h
}

func (h *compactorState) write(n, size int) (rev int64) {
	for i := range n {
		h.state.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/%d", i%10), Value: bytes.Repeat([]byte("x"), size)})
	}
	return h.view().Revision()
}

// compactIfWoken does what the compactor's loop does after a write, and tells whether it was woken.
func (h *compactorState) compactIfWoken() bool {
	h.Helper()
	h.published(h.view())
	select {
	case <-h.wake:
		testenv.NoError(h, h.bySize(context.Background()))
		return true
	default:
		return false
	}
}

// interval lets an interval pass, and returns the revision compacted to.
func (h *compactorState) interval() int64 {
	h.Helper()
	testenv.Check(h, h.byAge(context.Background()))
	return h.view().Compacted()
}

// TestRevisionsExpire: what was the newest revision before an interval's end
// cannot be read when the next one has ended, though nothing was written since.
func TestRevisionsExpire(t *testing.T) {
	h := newCompactorState(t, 1<<40)
	for round := range 5 {
		rev := h.write(1+round*7, 100)
		if to := h.interval(); to >= rev {
			t.Fatalf("round %d: compacted to %d, which includes revision %d of just now", round, to, rev)
		}
		if to := h.interval(); to <= rev {
			t.Fatalf("round %d: compacted to %d; revision %d can still be read", round, to, rev)
		}
		idle := h.view().Revision()
		for range 100 {
			h.interval()
		}
		if now := h.view().Revision(); now != idle {
			t.Errorf("round %d: %d revisions while nothing was written", round, now-idle)
		}
	}
}

// TestMarksOutliveTheirLeader: the next leader goes on with the mark that is
// there, so history that is old enough goes at its first interval.
func TestMarksOutliveTheirLeader(t *testing.T) {
	h := newCompactorState(t, 1<<40)
	rev := h.write(10, 100)
	h.interval()
	next := newCompactorState(t, 1<<40)
	next.state = h.state
	next.mark = markOf(next.view())
	if to := next.interval(); to <= rev {
		t.Errorf("compacted to %d; revision %d can still be read", to, rev)
	}
}

// TestMarksAreRefused: over the quota nothing can be written, but history goes.
func TestMarksAreRefused(t *testing.T) {
	h := newCompactorState(t, 1<<40)
	rev := h.write(10, 100)
	h.interval()
	full := errors.New("full")
	h.setMark = func(context.Context, string) (int64, error) { return 0, full }
	testenv.ErrorIs(t, h.byAge(context.Background()), full, "the error of the mark is lost")
	if to := h.view().Compacted(); to <= rev {
		t.Errorf("compacted to %d, want more than %d", to, rev)
	}
}

func TestCompactionBySize(t *testing.T) {
	const limit = 1 << 20
	for name, write := range map[string]func(h *compactorState, i int){
		"overwrites": func(h *compactorState, _ int) { h.write(100, 1<<10) },
		// What is overwritten is large, what overwrites it is small.
		"large, then small": func(h *compactorState, i int) { h.write(10, 1<<10+i%2*100<<10) },
		"made and deleted": func(h *compactorState, _ int) {
			h.write(10, 10<<10)
			h.state.Apply(&pb.DeleteRangeRequest{Key: []byte("/"), RangeEnd: []byte("0")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newCompactorState(t, limit)
			woken := 0
			for i := range 100 {
				write(h, i)
				if h.compactIfWoken() {
					woken++
					// Whole transactions stay or go: one may be over the half.
					if bytes := h.view().Stats().HistoryBytes(); bytes > limit/2 {
						t.Fatalf("%d bytes of history after a compaction", bytes)
					}
				}
				if bytes := h.view().Stats().HistoryBytes(); bytes > limit {
					t.Fatalf("%d bytes of history", bytes)
				}
			}
			testenv.False(t, woken == 0 || woken > 50, "woken %d times in 100 rounds", woken)
		})
	}
}

// TestPinnedHistoryDoesNotCompactAtEachWrite: while a snapshot keeps the
// history, compactions free nothing.
func TestPinnedHistoryDoesNotCompactAtEachWrite(t *testing.T) {
	h := newCompactorState(t, 1<<20)
	snapshot := h.view().Snapshot()
	woken := 0
	for range 10_000 {
		h.write(1, 1<<10)
		if h.compactIfWoken() {
			woken++
		}
	}
	if woken < 2 || woken > 50 { // at 1 MB and at each quarter of it more, of 12
		t.Errorf("woken %d times for 12 MB", woken)
	}
	// The compactor looks again only when it is woken, and that at the old bound.
	snapshot.Release()
	for range 2_000 {
		h.state.Prune()
		h.write(1, 1<<10)
		h.compactIfWoken()
		if bytes := h.view().Stats().HistoryBytes(); bytes > 1<<20 {
			t.Fatalf("%d bytes of history", bytes)
		}
	}
}

// TestOverwritesDoNotFillTheQuota writes one key at full speed: far less than
// the quota is live, so no write is refused.
func TestOverwritesDoNotFillTheQuota(t *testing.T) {
	stage(t, 1, 1, func(o *Options) { o.QuotaBytes = 64 << 20 }, func(c *cluster) {
		s := c.nodes[0].running()
		value := noise(1 << 20)
		for i := range 300 {
			if _, err := s.Client().Put(c.ctx, "k", value); err != nil {
				st := s.Status()
				c.Fatalf("write %d: %v: live %d, total %d", i, err, st.LiveBytes, st.TotalBytes)
			}
		}
		// The last compaction may have met a snapshot, which keeps the history until it is written. What it kept is
		// freed with the next entry that is applied.
		c.eventually("the history is bounded", time.Second, func() bool {
			testenv.Must(s.Client().Put(c.ctx, "next", ""))(c)
			return s.replica.fsm.view().Stats().HistoryBytes() <= 16<<20
		})
	})
}

// TestListsExpireOnAllServers: the revision of a list that was begun is gone
// from every server after five to ten minutes, also if the leader changes more
// often than that.
func TestListsExpireOnAllServers(t *testing.T) {
	for _, moves := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader moves %v", moves), func(t *testing.T) {
			stage(t, 1, 3, nil, func(c *cluster) {
				put := testenv.Must(c.leader().running().Client().Put(c.ctx, "/a", "x"))(c)
				begun, rev := time.Now(), put.Header.Revision
				readable := func(n *node) bool {
					_, err := n.running().Client().KV.Get(c.ctx, "/a", clientv3.WithRev(rev), clientv3.WithSerializable())
					testenv.Require(c, err == nil || errors.Is(err, rpctypes.ErrCompacted), "%v", err)
					return err == nil
				}
				for time.Since(begun) < 5*time.Minute-time.Second {
					c.pass(10 * time.Second)
					for _, n := range c.nodes {
						testenv.Require(c, readable(n), "%s: gone after %v", n.name, time.Since(begun))
					}
				}
				for left := 10*time.Minute + 30*time.Second - time.Since(begun); left > 0; left -= 4 * time.Minute {
					if moves { // more often than an interval takes
						testenv.NoError(c, c.leader().running().cluster.TransferLeadership(c.ctx))
					}
					c.pass(min(left, 4*time.Minute))
				}
				for _, n := range c.nodes {
					testenv.True(c, !readable(n), "%s: still there after %v", n.name, time.Since(begun))
				}
			})
		})
	}
}

// TestCostOfCompactionByAge lets a day pass in which something is written every
// two and a half minutes, as a node's lease is, and shows what compaction adds.
func TestCostOfCompactionByAge(t *testing.T) {
	cost := func(age time.Duration) (appends uint64, written int64) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			s := testenv.Must(Open(t.Context(), Options{Dir: dir, Logger: testLog("a"), HistoryAge: age}))(t)
			defer s.Close(context.Background())
			testenv.NoError(t, s.WaitReady(t.Context()))
			first, from := s.replica.raft.LastIndex(), bytesWritten(t)
			time.Sleep(time.Second) // writes of the same moment as the compactor's would share log entries with them
			for range 24 * 60 * 2 / 5 {
				time.Sleep(150 * time.Second)
				testenv.Must(s.Client().Put(t.Context(), "/registry/leases/kube-node-lease/a", strings.Repeat("x", 500)))(t)
			}
			appends, written = s.replica.raft.LastIndex()-first, bytesWritten(t)-from
		})
		return appends, written
	}
	without, bytesWithout := cost(1000 * time.Hour)
	with, bytesWith := cost(5 * time.Minute)
	t.Logf("a day: %d entries, %d KB written without compaction by age, %d and %d KB with it", without, bytesWithout>>10, with, bytesWith>>10)
	if more := with - without; more < 500 || more > 600 {
		t.Errorf("%d entries more, want two every five minutes: 576", more)
	}
	if more := bytesWith - bytesWithout; more > 5<<20 {
		t.Errorf("%d bytes more in a day", more)
	}
}

// bytesWritten is what this process caused to be written to disks, as the
// kernel counts it (proc_pid_io(5)).
func bytesWritten(t testing.TB) int64 {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skipf("the kernel does not count what is written: %v", err)
	}
	_, rest, _ := strings.Cut(string(text), "\nwrite_bytes: ")
	line, _, _ := strings.Cut(rest, "\n")
	return testenv.Must(strconv.ParseInt(line, 10, 64))(t)
}
