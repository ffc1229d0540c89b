// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestBothEndsCountRetransmissions asks both ends, while nothing gets through one way or the other, how often they have
// sent again what waits.
func TestBothEndsCountRetransmissions(t *testing.T) {
	for _, way := range []string{"ab", "ba", "both"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New()
				n.Backoff(true)
				n.Delay("a", "b", 30*time.Millisecond, 10*time.Millisecond)
				n.Delay("b", "a", 50*time.Millisecond, 10*time.Millisecond)
				a, b := pair(t, n)
				check := func(what string, end net.Conn, want int) {
					t.Helper()
					if got := end.(*conn).Retransmits(); got != want {
						t.Errorf("%s: sent again %d times instead of %d", what, got, want)
					}
				}
				send(t, a, "arrives")
				time.Sleep(80 * time.Millisecond) // fake time: too short for the way there and back
				check("while it is under way", a, 0)
				want(t, b, "arrives")
				time.Sleep(time.Hour) // fake time: nothing is sent
				check("long after", a, 0)
				if way != "ba" {
					n.Cut("a", "b")
				}
				if way != "ab" {
					n.Cut("b", "a")
				}
				check("nothing is under way", a, 0)
				send(t, a, "not acknowledged")
				lost := time.Now()
				for i, at := range []time.Duration{300, 900, 2100, 4500} { // milliseconds: 100 for the way there and back and 200 more, then twice as long each time
					again := lost.Add(at * time.Millisecond)
					time.Sleep(time.Until(again)) // fake time
					check("just before it is sent again", a, i)
					time.Sleep(time.Nanosecond) // fake time
					check("just after it was sent again", a, i+1)
				}
				check("who sent nothing", b, 0)
				n.HealAll()
				check("TCP does not know yet that the link has healed", a, 4)
				want(t, b, "not acknowledged")
				time.Sleep(5 * time.Second) // fake time: TCP's next try and the way back
				check("acknowledged", a, 0)
			})
		})
	}
}

// TestRetransmitsAcknowledgedLater: what was lost with its acknowledgement only is acknowledged by that of what is sent
// after it.
func TestRetransmitsAcknowledgedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Backoff(true)
		a, b := pair(t, n)
		send(t, a, "arrives")
		n.Cut("b", "a")
		send(t, a, ", too")
		time.Sleep(time.Minute) // fake time: the link is cut
		want(t, b, "arrives, too")
		testenv.False(t, a.(*conn).Retransmits() < 5, "it was hardly sent again")
		n.Heal("b", "a")
		send(t, a, "later")
		want(t, b, "later")
		if k := a.(*conn).Retransmits(); k != 0 {
			t.Errorf("sent again %d times", k)
		}
		_ = a.Close()
		if k := a.(*conn).Retransmits(); k != 0 {
			t.Errorf("closed, and sent again %d times", k)
		}
	})
}
