// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"fmt"
	"reflect"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestIdleTrafficDoesNotGrowWithMembers counts what members send while nothing happens, which must not grow with their
// number. The CPU time is that of all members without the kernel's part, and is only logged.
func TestIdleTrafficDoesNotGrowWithMembers(t *testing.T) {
	for _, n := range []int{3, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t)
				for range n {
					g.add()
				}
				time.Sleep(10 * time.Minute) // fake time: every member has been announced to every other
				for _, m := range g.members {
					testenv.Require(t, len(m.Members()) == n, "%s knows %d members", m.o.Name, len(m.Members()))
				}
				count := func() (packets, bytes, streams int64) {
					for _, m := range g.members {
						c := &m.transport.traffic
						packets, bytes, streams = packets+c.packetsOut.Load(), bytes+c.bytesOut.Load(), streams+c.dialed.Load()
					}
					return
				}
				const length = 5 * time.Minute
				p0, b0, s0 := count()
				cpu := cpuTime(t)
				time.Sleep(length) // the bubble's time: what is measured
				cpu = cpuTime(t) - cpu
				p1, b1, s1 := count()
				per := func(n0, n1 int64) float64 { return float64(n1-n0) / length.Seconds() / float64(n) }
				packets, bytes := per(p0, p1), per(b0, b1)
				t.Logf("%d members: each sends %.2f packets and %.0f bytes a second by UDP, opens a stream every %.0f s, uses %.4f%% of a core",
					n, packets, bytes, 1/per(s0, s1), 100*cpu.Seconds()/length.Seconds()/float64(n))
				testenv.False(t, packets > 4 || bytes > 500, "%.1f packets and %.0f bytes a second at rest", packets, bytes)
			})
		})
	}
}

// TestMemberAloneHasNoTimers: memberlist probes and gossips once there is another member, on both sides.
func TestMemberAloneHasNoTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timers := func(m *Member) int { return reflect.ValueOf(m.list).Elem().FieldByName("tickers").Len() }
		g := newGroup(t)
		first := g.add()
		time.Sleep(10 * time.Minute) // fake time
		if n := timers(first); n != 0 {
			t.Errorf("alone it has %d timers", n)
		}
		second := g.add()
		time.Sleep(time.Minute) // fake time: they have met
		if a, b := timers(first), timers(second); a != 2 || b != 2 {
			t.Errorf("two members have %d and %d timers, want 2 each", a, b)
		}
	})
}

func cpuTime(t *testing.T) time.Duration {
	var r syscall.Rusage
	testenv.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
