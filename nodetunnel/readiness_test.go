// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func because(reason string) func() string { return func() string { return reason } }

// TestNodeReceivesReadiness: a node has each change of its server's readiness when the report returns, and nothing
// where nothing has changed.
func TestNodeReceivesReadiness(t *testing.T) {
	n := echo()
	received := make(chan string, 10) // more than there are
	n.Readiness = func(reason string) { received <- reason }
	s := connect(t, n)
	for _, step := range []struct {
		present, want string // "-" for none
	}{{"", "-"}, {NoLeader, NoLeader}, {NoLeader, "-"}, {ClockOff, ClockOff}, {"", ""}, {"", "-"}} {
		testenv.NoError(t, s.ReportReadiness(because(step.present)))
		got := "-"
		select {
		case got = <-received:
		default:
		}
		testenv.Equal(t, got, step.want, "after a report of %q:", step.present)
	}
	testenv.Equal(t, s.Streams(), 0, "streams are left:")
}

// TestOlderNodeRefusesReadiness: a node that knows of no readiness refuses a report, dials nothing for it, and serves
// other streams.
func TestOlderNodeRefusesReadiness(t *testing.T) {
	n := echo()
	var dialed atomic.Int32
	dial := n.Dial
	n.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialed.Add(1)
		return dial(ctx, network, address)
	}
	s := connect(t, n)
	testenv.ErrorIs(t, s.ReportReadiness(because(NoLeader)), ErrRefused)
	testenv.Equal(t, dialed.Load(), 0, "addresses that the node dialed for a report:")
	c := testenv.Must(s.Dial(t.Context(), kubelet))(t)
	c.Close()
}
