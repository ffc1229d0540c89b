// SPDX-License-Identifier: Apache-2.0

package reachability

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// world is a network of nodes in a bubble of fake time: no sleep of this file takes any.
type world struct {
	*Watch

	mu       sync.Mutex
	late     map[string]bool // the API does not have them yet
	dead     map[string]bool
	trip     time.Duration
	overrun  time.Duration // what a check lasts longer than it may: this machine is short of CPU
	checks   map[string]int
	reported []string
}

const port = 6443

func address(node string) netip.Addr {
	var i byte
	_, _ = fmt.Sscanf(node, "n%d", &i)
	return netip.AddrFrom4([4]byte{10, 0, 0, i})
}

// run runs f in a world in which the API knows the nodes that begin with n.
func run(t *testing.T, f func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{late: map[string]bool{}, dead: map[string]bool{}, checks: map[string]int{}, trip: time.Millisecond}
		w.Watch = New(Options{
			Check: w.check, Jitter: func(d time.Duration) time.Duration { return d / 2 }, Logger: slog.New(slog.DiscardHandler),
			Report: func(node string) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.reported = append(w.reported, node)
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.Run(ctx, func(node string) []netip.Addr {
				w.mu.Lock()
				defer w.mu.Unlock()
				if !strings.HasPrefix(node, "n") || w.late[node] {
					return nil
				}
				return []netip.Addr{address(node)}
			})
		}()
		f(w)
		cancel()
		<-done
	})
}

func (w *world) check(ctx context.Context, at []netip.AddrPort) (time.Duration, bool) {
	w.mu.Lock()
	var node string
	for _, a := range at {
		if a.Port() == port {
			node = fmt.Sprintf("n%d", a.Addr().As4()[3])
		}
	}
	w.checks[node]++
	dead, trip, overrun := w.dead[node], w.trip, w.overrun
	w.mu.Unlock()
	wait := trip
	if dead {
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
		return trip, true
	case <-ctx.Done():
		time.Sleep(overrun) // fake time: the check lasts for as long as the case says
		return 0, false
	}
}

// kill changes which nodes are dead.
func (w *world) kill(nodes ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = map[string]bool{}
	for _, n := range nodes {
		w.dead[n] = true
	}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// checked returns how often a node was checked since the last time.
func (w *world) checked(node string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.checks[node]
	w.checks[node] = 0
	return n
}

func (w *world) want(t *testing.T, what string, down ...string) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(w.Nodes())); !slices.Equal(got, down) {
		t.Errorf("%s: %v are not reached, want %v", what, got, down)
	}
}

func TestNodesAreProbedWhenNominated(t *testing.T) {
	run(t, func(w *world) {
		for _, n := range []string{"n1", "n2", "n3", "other"} {
			w.NodeJoined(n, port)
		}
		time.Sleep(verifyWithin)
		for _, n := range []string{"n1", "n2"} {
			if got := w.checked(n); got != 1 {
				t.Errorf("a new node is checked %d times", got)
			}
		}
		time.Sleep(24 * time.Hour)
		testenv.Equal(t, w.checked("n1"), 0, "checks while none is nominated:")

		w.kill("n1")
		time.Sleep(time.Hour)
		w.want(t, "none was nominated")
		changed := w.Changed()
		w.PeerReportedFailure("n1")
		w.PeerReportedFailure("n2")
		w.PeerReportedFailure("other")
		w.PeerReportedFailure("unheard of")
		time.Sleep(checkTimeout + time.Second/2)
		w.want(t, "its own check decides, whichever member nominated it", "n1")
		select {
		case <-changed:
		default:
			t.Error("the channel is not closed")
		}
		w.set(func() {
			testenv.EqualSlices(t, w.reported, []string{"n1"}, "reported to others")
		})
		if n := w.checked("n2"); n != 1 {
			t.Errorf("a node that answers is checked %d times", n)
		}

		time.Sleep(24 * time.Hour)
		if n := w.checked("n1"); n > 24*3600/5 {
			t.Errorf("%d checks in a day of a node that stays away", n)
		}
		w.NodeJoined("n1", port)
		w.want(t, "that gossip hears it does not say that this machine reaches it", "n1")
		w.kill()
		time.Sleep(firstCheckTimeout + recheckLongInterval + time.Second) // a check may have begun just before, and the next one takes a moment
		w.want(t, "it answers")
	})
}

// TestDeathRightAfterReturn: a node that is reached again dies before gossip has heard of its return, so that no member
// probes it, and none nominates it. Its sleeps are of fake time, as all of this file: nothing may happen in the last.
func TestDeathRightAfterReturn(t *testing.T) {
	run(t, func(w *world) {
		w.NodeJoined("n1", port)
		time.Sleep(verifyWithin) // fake time
		fail := func() {
			w.kill("n1")
			w.ProbeFailed("n1")
			time.Sleep(3 * time.Second) // fake time
			w.want(t, "after its death", "n1")
			w.kill()
			time.Sleep(3 * time.Second) // fake time
			w.want(t, "after its return")
		}
		fail()
		w.kill("n1")
		time.Sleep(5 * time.Second) // fake time
		w.want(t, "after its death unheard of", "n1")
		w.kill()
		time.Sleep(checkAfterReturn + 5*time.Second) // fake time
		w.want(t, "after its second return")
		w.checked("n1")
		time.Sleep(time.Hour) // fake time
		testenv.Equal(t, w.checked("n1"), 0, "checks of a node that has been reached for long:")

		fail()
		w.NodeJoined("n1", port)    // from now on gossip probes it
		time.Sleep(recheckInterval) // fake time
		w.checked("n1")
		time.Sleep(time.Hour) // fake time
		testenv.Equal(t, w.checked("n1"), 0, "checks of a node of whose return gossip has heard:")
	})
}

// TestReturnThatGossipHearsFirst: members probe a node of whose return gossip has heard, so that it needs no checks, of
// which each node of a large cluster would make one a second to each other one when a network is whole again.
func TestReturnThatGossipHearsFirst(t *testing.T) {
	run(t, func(w *world) {
		for _, when := range []time.Duration{0, w.trip / 2} { // before the check that reaches it, and while that is under way
			w.NodeJoined("n1", port)
			time.Sleep(verifyWithin + time.Second) // fake time
			w.kill("n1")
			w.ProbeFailed("n1")
			time.Sleep(3 * time.Second) // fake time
			w.want(t, "after its death", "n1")
			w.kill()
			if when > 0 {
				for w.checked("n1"); w.checked("n1") == 0; {
					time.Sleep(when) // fake time
				}
			}
			w.NodeJoined("n1", port)
			time.Sleep(firstCheckTimeout + recheckInterval) // a check that had begun before its return
			w.want(t, "after its return")
			w.checked("n1")
			time.Sleep(time.Hour) // fake time
			testenv.Equal(t, w.checked("n1"), 0, "checks of a node of whose return gossip had heard:")
		}
	})
}

// TestDeathAfterAReturnThatGossipMissed: gossip gives a node up when it is reached again, since its program is not
// there yet. That does not shorten the time for which it is checked.
func TestDeathAfterAReturnThatGossipMissed(t *testing.T) {
	run(t, func(w *world) {
		w.NodeJoined("n1", port)
		time.Sleep(verifyWithin) // fake time
		w.kill("n1")
		w.ProbeFailed("n1")
		time.Sleep(time.Second) // fake time
		w.want(t, "after its death", "n1")
		w.kill()
		time.Sleep(firstCheckTimeout + recheckInterval) // fake time
		w.NodeLeft("n1")
		w.ProbeFailed("n1")
		time.Sleep(checkAfterLeave + 5*time.Second) // fake time
		w.kill("n1")
		time.Sleep(3 * time.Second) // fake time
		w.want(t, "after its second death", "n1")
	})
}

func TestNeverReachedIsNeverMarked(t *testing.T) {
	run(t, func(w *world) {
		w.kill("n1")
		w.NodeJoined("n1", port)
		for range 1000 {
			w.ProbeFailed("n1")
			time.Sleep(time.Second)
		}
		w.want(t, "a node behind a router")
		if n := w.checked("n1"); n > maxVerifications {
			t.Errorf("%d checks of a node that cannot be reached", n)
		}
	})
}

func TestDelayedProbeDoesNotCount(t *testing.T) {
	run(t, func(w *world) {
		w.NodeJoined("n1", port)
		time.Sleep(verifyWithin)
		w.set(func() { w.overrun = 2 * lateBy })
		w.kill("n1")
		w.ProbeFailed("n1")
		time.Sleep(time.Minute)
		w.want(t, "a check that lasted too long does not count")
		w.set(func() { w.overrun = 0 })
		time.Sleep(10 * time.Second)
		w.want(t, "it is repeated", "n1")
	})
}

// A network that is slow is given its time.
func TestSlowNodeStaysReachable(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.trip = 900 * time.Millisecond })
		w.NodeJoined("n1", port)
		time.Sleep(verifyWithin + time.Second)
		w.ProbeFailed("n1")
		time.Sleep(time.Minute)
		w.want(t, "as slow as it was")
		if n := w.checked("n1"); n != 2 {
			t.Errorf("%d checks, want two", n)
		}
	})
}

// A machine that is shut down says good-bye, and is not nominated any more.
func TestLeavingMemberIsNotNominated(t *testing.T) {
	run(t, func(w *world) {
		w.NodeJoined("n1", port)
		w.NodeJoined("n2", port)
		time.Sleep(verifyWithin)
		w.NodeLeft("n1")
		w.NodeLeft("n2")
		time.Sleep(5 * time.Second)
		w.want(t, "the programs have stopped, and the pods run")
		w.kill("n1")
		time.Sleep(3 * time.Second)
		w.want(t, "one machine is off", "n1")
		time.Sleep(time.Minute)
		w.checked("n2")
		time.Sleep(time.Hour)
		testenv.Equal(t, w.checked("n2"), 0, "checks of the other one, an hour later:")
	})
}

// A member that reports again and again that nodes do not answer causes few checks, and none of unknown ones.
func TestReportsAreBounded(t *testing.T) {
	run(t, func(w *world) {
		for i := range 2 * maxNodes {
			w.NodeJoined(fmt.Sprintf("x%d", i), port)
		}
		time.Sleep(24 * time.Hour)
		w.Watch.mu.Lock()
		testenv.Equal(t, len(w.nodes), 0, "nodes that the API does not have are known:")
		w.Watch.mu.Unlock()
		w.NodeJoined("n1", port)
		time.Sleep(verifyWithin)
		w.checked("n1")
		for range 6000 {
			w.PeerReportedFailure("n1")
			w.NodeLeft("n9")
			time.Sleep(10 * time.Millisecond)
		}
		if n := w.checked("n1"); n > 13 {
			t.Errorf("%d checks in a minute", n)
		}
		testenv.Equal(t, w.checked("n9"), 0, "checks of an unknown node:")
	})
}

// TestNodeThatGossipKnewFirstIsReached: a node of which gossip says more than the API at first, as at the start of a
// machine, is reached soon after the API has it. One that dies within the first seconds would otherwise keep its
// endpoints until the leader takes them out.
func TestNodeThatGossipKnewFirstIsReached(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.late["n1"] = true })
		w.NodeJoined("n1", port)
		time.Sleep(3 * time.Second) // fake time
		w.set(func() { w.late["n1"] = false })
		time.Sleep(4 * time.Second) // fake time
		w.kill("n1")
		w.ProbeFailed("n1")
		time.Sleep(2 * time.Second) // fake time
		w.want(t, "a node that died seconds after the API had it", "n1")
	})
}

// TestMachineThatGossipKnewLongIsReached: a machine of which gossip alone has known for long is reached soon after
// gossip says that it is there again.
func TestMachineThatGossipKnewLongIsReached(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.late["n1"] = true })
		w.NodeJoined("n1", port)
		time.Sleep(5 * time.Minute) // fake time
		w.NodeJoined("n1", port)
		w.set(func() { w.late["n1"] = false })
		time.Sleep(verifyWithin) // fake time
		w.kill("n1")
		w.ProbeFailed("n1")
		time.Sleep(2 * time.Second) // fake time
		w.want(t, "a node that died seconds after it came", "n1")
	})
}

// TestNodeDeletedDuringItsProbe: a Node is deleted while its machine restarts, and is looked at just then. It is one
// that was never reached then, and is when it is back.
func TestNodeDeletedDuringItsProbe(t *testing.T) {
	run(t, func(w *world) {
		w.NodeJoined("n1", port)
		w.NodeJoined("n2", port)
		time.Sleep(verifyWithin) // fake time
		w.kill("n2")
		w.ProbeFailed("n2")
		w.NodeLeft("n1")
		w.set(func() { w.late["n1"] = true })
		time.Sleep(time.Second / 2) // fake time
		w.NodeJoined("n1", port)    // gossip is back before the API has it
		time.Sleep(3 * time.Second) // fake time
		w.want(t, "one has stopped", "n2")
		w.set(func() { w.late["n1"], w.late["n2"] = false, true })
		time.Sleep(4 * time.Second) // fake time
		w.want(t, "the Node of the other one is gone")
		w.kill("n1", "n2")
		w.ProbeFailed("n1")
		w.set(func() { w.late["n2"] = false })
		time.Sleep(time.Minute) // fake time
		w.want(t, "dead, and another machine of the other one's name was never reached", "n1")
	})
}

// TestOneMoreDeathAfterMostVanished: when most of the nodes have vanished at once, one more that dies is found as soon
// as ever, and one that comes back too.
func TestOneMoreDeathAfterMostVanished(t *testing.T) {
	run(t, func(w *world) {
		nodes := make([]string, 255)
		for i := range nodes {
			nodes[i] = fmt.Sprintf("n%d", i)
			w.NodeJoined(nodes[i], port)
		}
		time.Sleep(verifyWithin + time.Second) // fake time
		stopped := nodes[:240]
		w.kill(stopped...)
		for _, n := range stopped {
			w.ProbeFailed(n)
		}
		time.Sleep(10 * time.Second) // fake time
		w.want(t, "most have vanished", slices.Sorted(slices.Values(stopped))...)
		for range 20 {
			time.Sleep(777 * time.Millisecond) // fake time
			w.kill(append(slices.Clone(stopped), "n250")...)
			w.ProbeFailed("n250")
			time.Sleep(time.Second) // fake time
			testenv.True(t, w.Nodes()["n250"], "one more has died, and is not found for a second")
			w.kill(stopped...)
			w.NodeJoined("n250", port)
			time.Sleep(time.Second) // fake time
			testenv.False(t, w.Nodes()["n250"], "one has come back, and is not found for a second")
		}
		for _, n := range stopped {
			w.checked(n)
		}
		time.Sleep(time.Minute) // fake time
		for _, n := range stopped {
			if got := w.checked(n); got < 1 {
				t.Errorf("%s was checked %d times in a minute", n, got)
			}
		}
		w.kill()
		time.Sleep(firstCheckTimeout + recheckLongInterval + time.Second) // fake time
		w.want(t, "all are back, and none was reported")
	})
}

// TestManyBehindRouters: where most nodes are such as no other one can connect to, one of the others that dies is found
// as soon as ever, and a new one is tried as soon.
func TestManyBehindRouters(t *testing.T) {
	run(t, func(w *world) {
		w.NodeJoined("n250", port)
		w.NodeJoined("n251", port)
		time.Sleep(verifyWithin) // fake time
		far := make([]string, 240)
		for i := range far {
			far[i] = fmt.Sprintf("n%d", i)
		}
		w.kill(far...)
		for _, n := range far {
			w.NodeJoined(n, port)
		}
		for i := range 40 {
			time.Sleep(777 * time.Millisecond) // fake time
			w.kill(append(slices.Clone(far), "n250")...)
			w.ProbeFailed("n250")
			time.Sleep(time.Second) // fake time
			testenv.True(t, w.Nodes()["n250"], "round %d: one has died, and is not found for a second", i)
			w.kill(far...)
			w.NodeJoined("n250", port)
			time.Sleep(time.Second) // fake time
			w.want(t, fmt.Sprintf("round %d: one has come back", i))
		}
		w.NodeJoined("n252", port)
		time.Sleep(verifyWithin + firstCheckTimeout) // fake time
		w.kill(append(slices.Clone(far), "n252")...)
		w.ProbeFailed("n252")
		time.Sleep(time.Second) // fake time
		w.want(t, "a new one was reached, and is not now", "n252")
		time.Sleep(time.Hour) // fake time
		for _, n := range far {
			if got := w.checked(n); got != maxVerifications {
				t.Errorf("%s was checked %d times", n, got)
			}
		}
	})
}

// A machine that refuses connections lives as well as one that takes them.
func TestRefusedConnectionsCountAsAlive(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	at := []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}
	if _, ok := CheckTCP(t.Context(), at); !ok {
		t.Error("an open port is not reached")
	}
	testenv.Check(t, l.Close())
	if _, ok := CheckTCP(t.Context(), at); !ok {
		t.Error("a port that refuses is not reached")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := CheckTCP(ended, at); ok {
		t.Error("something was reached in no time")
	}
	if _, ok := CheckTCP(t.Context(), nil); ok {
		t.Error("nothing was reached")
	}
}
