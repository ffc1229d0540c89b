// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// recorder notes what a Reach hears.
type recorder struct {
	mu    sync.Mutex
	calls []string
}

func (e *recorder) note(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, what)
}

func (e *recorder) NodeJoined(name string, port uint16) {
	if port == 6443 {
		e.note("came " + name)
	}
}
func (e *recorder) NodeLeft(name string)            { e.note("stopped " + name) }
func (e *recorder) ProbeFailed(name string)         { e.note("silent " + name) }
func (e *recorder) PeerReportedFailure(name string) { e.note("told " + name) }

// has says whether something was heard, and forgets all.
func (e *recorder) has(what string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	found := slices.Contains(e.calls, what)
	e.calls = nil
	return found
}

// A member that vanishes is nominated long before memberlist calls it dead; one that stops is not. At rest none is.
func TestVanishedMemberIsReportedAndStoppedOneNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		e := &recorder{}
		m := g.add(func(o *Options) { o.Reach = e })
		for range 3 {
			g.add()
		}
		time.Sleep(spread)
		testenv.True(t, e.has("came "+name(1)), "a member has come, and that was not reported")
		time.Sleep(time.Hour)
		if e.mu.Lock(); len(e.calls) > 0 {
			t.Errorf("heard in an hour of rest: %q", e.calls)
		}
		e.mu.Unlock()

		g.stops[3]()
		time.Sleep(spread)
		testenv.True(t, e.has("stopped "+name(3)), "a member has stopped, and that was not reported")

		g.members[1].ReportUnreachable(name(2))
		time.Sleep(time.Second)
		testenv.True(t, e.has("told "+name(2)), "another member says that one does not answer, and that was not reported")

		g.net.split(func(a netip.AddrPort) bool { return a == at(2) })
		// Of two members each asks this one every two seconds, and waits for half a one.
		time.Sleep(4 * time.Second)
		for _, i := range m.Members() {
			testenv.False(t, i.Name == name(2) && i.State != Alive, "memberlist says already that it is %s", i.State)
		}
		testenv.True(t, e.has("silent "+name(2)), "a member does not answer, and that was not reported")
		time.Sleep(time.Minute) // fake time
		testenv.True(t, e.has("stopped "+name(2)), "no member probes one any more that all think dead, and that was not reported")
	})
}
