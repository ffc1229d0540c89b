// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// cut says when the power goes: when something has happened in the guest for
// the count'th time and then the disk got some more requests.
type cut struct {
	name     string
	moment   string
	count    int // at most
	requests int // at most
	exactly  int // so many requests, if it is not 0
	newDisk  bool
	lies     bool // the disk says it flushed and did not
}

// cuts are in the order in which a short run takes them.
var cuts = []cut{
	{name: "first start", moment: "opening", requests: 80, newDisk: true},
	{name: "writes", moment: "acknowledged", count: 2000, requests: 10},
	{name: "start", moment: "opening", requests: 20},
	{name: "snapshot", moment: "snapshot", count: 1, requests: 80},
	{name: "new segment", moment: "segment", count: 2, requests: 12},
	{name: "term", moment: "vars", count: 2, requests: 4},
	{name: "log trimmed", moment: "snapshotted", count: 1, requests: 20},
	{name: "first writes", moment: "acknowledged", count: 20, requests: 4},
}

// nextCut is in order first, then random.
func (r *rig) nextCut(i int) cut {
	if i < len(cuts) {
		return cuts[i]
	}
	return cuts[r.random.IntN(len(cuts))]
}

// TestPowerCuts cuts the power of a single server CORACLE_POWERCUTS times,
// three if that is not set, and checks the store after each.
func TestPowerCuts(t *testing.T) {
	r := newRig(t, 1)
	s := r.servers[0]
	for i := range int(environment(t, "CORACLE_POWERCUTS", 3)) {
		c := r.nextCut(i)
		if c.newDisk {
			if i > 0 {
				testenv.NoError(t, r.check())
			}
			r.newDisks()
		}
		r.start(s, c, false)
		if !r.awaitReady(patience, s) {
			t.Fatal(r.explain(s, errNotReady))
		}
		r.sendGo(s)
		r.settle(s, SomeLoss(r.random))
		testenv.Require(t, len(s.lines.unknown) == 0, "nothing was wrong, and writes failed: %v", s.lines.unknown)
	}
	testenv.NoError(t, r.check())
	r.summary()
}

// TestFirstStartSurvivesPowerCuts cuts the power at each of the first start's requests, in turn,
// and the store has to start nevertheless.
func TestFirstStartSurvivesPowerCuts(t *testing.T) {
	if os.Getenv("CORACLE_POWERCUTS") == "" {
		t.Skip("takes minutes: make powercut runs this")
	}
	r := newRig(t, 1)
	s := r.servers[0]
	for n, ready := 1, false; !ready; n++ {
		r.newDisks()
		r.start(s, cut{name: fmt.Sprintf("request %d of the first start", n), moment: "opening", exactly: n}, false)
		if !r.awaitReady(patience, s) {
			t.Fatal(r.explain(s, errNotReady))
		}
		select {
		case <-s.ready:
			ready = true
		default:
		}
		s.disk.CutAfter(0)
		r.settle(s, []Loss{{Kept: 0}, {Kept: 1}}[n%2])
		testenv.NoError(t, r.check(), "after a cut at %s", s.cut.name)
	}
	r.summary()
}

// TestLyingDiskLosesAcknowledgedWrites shows that the test can fail: a disk that says it flushed and
// did not loses what was acknowledged.
func TestLyingDiskLosesAcknowledgedWrites(t *testing.T) {
	r := newRig(t, 1)
	s := r.servers[0]
	r.newDisks()
	r.start(s, cut{name: "writes", moment: "acknowledged", count: 100, lies: true}, false)
	if !r.awaitReady(patience, s) {
		t.Fatal(r.explain(s, errNotReady))
	}
	r.sendGo(s)
	r.settle(s, Loss{})
	err := r.check()
	testenv.Require(t, err != nil, "a disk that forgot everything went unnoticed")
	t.Logf("as it should be: %v", err)
}

// TestPowerCutsOfThree cuts the power of one, two or all servers of a cluster,
// and finally of those that are left, CORACLE_POWERCUT_ROUNDS times. Sometimes
// one comes back in between and catches up. After each round all start and must
// have the same, and everything acknowledged.
func TestPowerCutsOfThree(t *testing.T) {
	rounds := int(environment(t, "CORACLE_POWERCUT_ROUNDS", 0))
	if rounds == 0 {
		t.Skip("three kernels on a small machine take minutes: make powercut runs this")
	}
	r := newRig(t, 3)
	for i := range rounds {
		if i%10 == 0 {
			if i > 0 {
				testenv.NoError(t, r.check())
			}
			r.newDisks()
		}
		r.round(i%10 == 0)
	}
	testenv.NoError(t, r.check())
	r.summary()
}

// round is one of TestPowerCutsOfThree's. In the first of new disks, all live
// until the cluster is made.
func (r *rig) round(newDisks bool) {
	r.t.Helper()
	order := r.random.Perm(len(r.servers))
	victims := 1 + r.random.IntN(len(r.servers))
	var first, rest []*server
	for n, i := range order {
		s := r.servers[i]
		c := cut{name: "with the rest"}
		if n < victims {
			c = cuts[r.random.IntN(len(cuts))]
			for newDisks && (c.moment == "opening" || c.moment == "vars") {
				c = cuts[r.random.IntN(len(cuts))]
			}
			first = append(first, s)
		} else {
			rest = append(rest, s)
		}
		r.start(s, c, false)
	}
	r.t.Logf("%d servers go first", victims)
	within := 30 * time.Second // without a majority none of them will be
	if r.majority() {
		within = patience
	}
	testenv.Require(r.t, r.awaitReady(within, r.servers...) || !r.majority(), "%v", errNotReady)
	for _, s := range r.servers {
		select {
		case <-s.ready:
			r.sendGo(s)
		default:
		}
	}
	// Servers that lost the majority can do nothing that a cut could wait for.
	for _, s := range first {
		r.untilOff(s)
		r.settle(s, SomeLoss(r.random))
	}
	r.letWrite(rest, r.random.IntN(500))
	if r.majority() && r.random.IntN(2) == 0 {
		back := first[0]
		r.start(back, cut{name: "catching up", moment: "opening", requests: 300}, true)
		r.letWrite(rest, r.random.IntN(1000))
		rest = append(rest, back)
	}
	for _, s := range rest {
		s.disk.CutAfter(r.random.IntN(5))
	}
	for _, s := range rest {
		r.untilOff(s)
		r.settle(s, SomeLoss(r.random))
	}
}

// majority says whether most servers have power.
func (r *rig) majority() bool {
	n := 0
	for _, s := range r.servers {
		if s.boot != nil && s.disk.powered() {
			n++
		}
	}
	return 2*n > len(r.servers)
}

// untilOff returns when a server's power is off, or turns it off if nothing is
// acknowledged any more that could bring its cut about.
func (r *rig) untilOff(s *server) {
	for {
		select {
		case <-s.done:
			return
		case <-s.acks:
		case <-time.After(5 * time.Second):
			s.disk.CutAfter(0)
		}
	}
}

// letWrite returns after about so many acknowledged writes, or when there are
// none any more.
func (r *rig) letWrite(servers []*server, n int) {
	if len(servers) == 0 {
		return
	}
	acked := func() (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range servers {
			n += s.lines.acked
		}
		return n
	}
	for until := acked() + n; acked() < until; {
		select {
		case <-servers[0].acks:
		case <-servers[0].done:
			return
		case <-time.After(3 * time.Second):
			return
		}
	}
}
