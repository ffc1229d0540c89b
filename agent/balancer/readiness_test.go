// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// All sleeps of this file are of fake time.

// seconds lets some seconds pass in which both servers reply.
func seconds(b *Balancer, n int) {
	for range n {
		b.Replied("one", true)
		b.Replied("other", true)
		time.Sleep(time.Second) // fake time
		synctest.Wait()
	}
}

// TestUnreadyServersAreLeftOverSeconds: the nodes of a server that is not ready leave it while another one is ready,
// not all at the same moment, and do not come back when it is ready.
func TestUnreadyServersAreLeftOverSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, longest = 40, leaveAfter + leaveSpread + checkEvery
		moments, began := map[time.Duration]int{}, time.Now()
		var all []*Balancer
		var left []<-chan time.Time
		for range nodes {
			b, closed := oneInUse(t)
			watching(t, b)
			all, left = append(all, b), append(left, closed)
			b.SetReadiness("one", nodetunnel.NoLeader)
		}
		for range longest/time.Second + 1 {
			for _, b := range all {
				b.Replied("one", true)
				b.Replied("other", true)
			}
			time.Sleep(time.Second) // fake time
		}
		synctest.Wait()
		for i, closed := range left {
			select {
			case at := <-closed:
				took := at.Sub(began)
				testenv.True(t, took >= leaveAfter, "a server is left after %v", took)
				moments[took]++
			default:
				t.Fatalf("node %d stays after %v", i, longest)
			}
		}
		testenv.True(t, len(moments) > 1, "all nodes leave a server at the same moment: %v", moments)
		b := all[0]
		var log testenv.Log
		b.o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		b.moveToFront("other")
		b.moveToFront("other")
		testenv.Equal(t, strings.Count(log.String(), "the API is reached through another server"), 1, "lines about the server that is used now:")
		seconds(b, 1)
		testenv.Equal(t, b.candidates()[0], "other", "is tried first:")
		b.SetReadiness("one", "")
		seconds(b, 5)
		testenv.Equal(t, b.candidates()[0], "other", "is tried first when both are ready:")
	})
}

// TestUnreadyServerIsKeptWithoutBetterOne: a server that is not ready is used while no other server is ready, replies,
// and is known by its own certificate, and while it may be ready again in a moment.
func TestUnreadyServerIsKeptWithoutBetterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		watching(t, b)
		stays := func(why string) {
			t.Helper()
			leaves(t, closed, false, "a server is left %s", why)
		}
		b.SetReadiness("one", nodetunnel.NoLeader)
		for range 10 {
			b.Replied("one", true)
			b.Replied("other", false)
			time.Sleep(time.Second) // fake time
		}
		stays("for one that another machine has forwarded to")
		for range 10 {
			b.Replied("one", true)
			time.Sleep(time.Second) // fake time
		}
		stays("for one that does not reply")
		b.SetReadiness("other", nodetunnel.NoLeader)
		seconds(b, 10)
		stays("for one that is not ready either")
		b.SetReadiness("one", "")
		b.SetReadiness("other", "")
		seconds(b, 10)
		b.SetReadiness("one", nodetunnel.NoLeader)
		time.Sleep(leaveAfter - time.Millisecond) // fake time
		synctest.Wait()
		b.SetReadiness("one", "")
		seconds(b, 10)
		stays("that was not ready for a moment")
		b.SetReadiness("one", nodetunnel.ClockOff)
		b.SetReadiness("one", nodetunnel.NoLeader)
		seconds(b, 5)
		leaves(t, closed, true, "a server that is not ready is not left")
	})
}

// TestNewConnectionsAvoidUnreadyServers: a server that is not ready comes after one that is, and before those that do
// not reply.
func TestNewConnectionsAvoidUnreadyServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := oneInUse(t)
		b.servers = []string{"named", "silent", "one", "other"}
		b.Replied("silent", true)
		time.Sleep(2 * verifiedTTL) // fake time
		b.Replied("one", true)
		b.Replied("other", true)
		b.SetReadiness("one", nodetunnel.NoLeader)
		testenv.Equal(t, strings.Join(b.candidates(), " "), "other one silent named", "are tried in this order:")
	})
}

// TestStatusNamesUnreadyServer: while the server in use is not ready, status names it.
func TestStatusNamesUnreadyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := oneInUse(t)
		board := status.NewBoard(time.Now)
		b.o.Part = board.Part("servers")
		shows := func(want status.State, word string) {
			t.Helper()
			got := board.Components()[0]
			testenv.True(t, got.State == want && strings.Contains(got.Message, word), "%+v, want %s, %q", got, want, word)
		}
		b.SetReadiness("other", "")
		b.SetReadiness("other", nodetunnel.NoLeader)
		shows(status.Starting, "")
		b.moveToFront("one")
		shows(status.Running, "")
		b.SetReadiness("one", nodetunnel.NoLeader)
		shows(status.Degraded, "one, the server that this node uses, is not ready: its store has no leader")
		b.SetReadiness("other", "")
		b.moveToFront("other")
		shows(status.Running, "")
		b.SetReadiness("one", "")
		shows(status.Running, "")
		b.SetReadiness("other", nodetunnel.ClockOff)
		shows(status.Degraded, "clock")
		b.SetReadiness("other", "")
		shows(status.Running, "")
	})
}

// TestUseAnother: a node that starts leaves a server that is not ready for one that presents its certificate, and stays
// where there is none.
func TestUseAnother(t *testing.T) {
	_, two, b := twoServers(t)
	first := wantAnswer(t, b, "one")
	b.UseAnother(t.Context())
	testenv.True(t, testenv.Err(first.Ask()) != nil, "the connection to a server that was left stays open")
	wantAnswer(t, b, "two")
	b.UseAnother(t.Context())
	wantAnswer(t, b, "one")
	two.Stop()
	b.UseAnother(t.Context())
	wantAnswer(t, b, "one")
}
