//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/ha"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mostGap is how long the servers that run on may be without writes while one of them is stopped in order.
const mostGap = 500 * time.Millisecond

// TestServersThereAndBack: three servers and two agents are upgraded by hand, one after the other, taken back, and
// upgraded again.
func TestServersThereAndBack(t *testing.T) {
	harness.ByHand(t)
	serversThereAndBack(t, older(t), this())
}

// TestServersOfTwoLevelsThereAndBack: the same with a version that knows a level more. When the last of its machines
// has started, nothing is raised.
func TestServersOfTwoLevelsThereAndBack(t *testing.T) {
	harness.ByHand(t)
	serversThereAndBack(t, this(), twoLevels(t))
}

func serversThereAndBack(t *testing.T, n, next version) {
	t.Helper()
	l := startLoad(t, ha.NewOfProgram(t, n.program, 3, 2))
	l.holds(n.name)
	vanished := []time.Duration{l.vanish(n)}
	for i, v := range []version{next, n, next} {
		what := fmt.Sprintf("pass %d, %s", i+1, v.name)
		l.exchangeAll(what, v)
		l.holds(what)
	}
	vanished = append(vanished, l.vanish(next))
	l.holds("after the end of a leader")
	for _, g := range vanished {
		t.Logf("a vanished leader: %.2f s without writes", g.Seconds())
	}
}

// exchangeAll gives each machine another version: servers that do not lead first, then the leader, then agents. It
// fails the test if the servers that run on are without writes for long.
func (l *load) exchangeAll(what string, v version) {
	l.t.Helper()
	for _, s := range l.servers() {
		role := "a server that does not lead"
		if s == l.c.MustLeader() {
			role = "the leader"
		}
		l.without(fmt.Sprintf("%s: %s", what, role), s, v)
	}
	for _, a := range l.c.Agents {
		l.without(fmt.Sprintf("%s: an agent", what), a, v)
	}
}

// servers are the servers, the leader last.
func (l *load) servers() []*harness.Server {
	l.t.Helper()
	lead := l.c.MustLeader()
	return append(ha.Without(l.c.Servers, lead), lead)
}

// without exchanges a machine's program and measures the gap of writes at the servers that run on.
func (l *load) without(what string, s *harness.Server, v version) {
	l.t.Helper()
	began := time.Now()
	l.exchange(s, v)
	gap := l.gap(began, s)
	l.t.Logf("%s, machine %d: exchanged within %.1f s, %.2f s without writes", what, s.Number, time.Since(began).Seconds(), gap.Seconds())
	testenv.True(l.t, gap <= mostGap, "%s: %v without writes, want %v at most", what, gap, mostGap)
}

// vanish ends the leader with SIGKILL and starts it again. It returns the gap of writes at the others.
func (l *load) vanish(v version) time.Duration {
	l.t.Helper()
	lead := l.c.MustLeader()
	began := time.Now()
	lead.Kill()
	for s := range l.writers {
		if s != lead {
			l.goesOn(s, began)
		}
	}
	gap := l.gap(began, lead)
	lead.Bin = v.program
	lead.Start()
	l.c.WaitWhole()
	return gap
}
