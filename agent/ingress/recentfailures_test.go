// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTroublesAreNamedForAWhile: limits that clients met, and ends of the proxy, are named with their counts and the
// setting that raises the limit, until ten minutes after the last one.
func TestTroublesAreNamedForAWhile(t *testing.T) {
	now := time.Date(2026, 11, 29, 13, 12, 0, 0, time.UTC)
	var tr recentFailures
	said := func() string { return strings.Join(tr.texts(256<<20, 4000, now), "; ") }
	testenv.Equal(t, said(), "", "without troubles it says")
	tr.addCounts(table.Limited{Memory: 5}, table.Limited{Memory: 8}, now)
	now = now.Add(9 * time.Minute)
	tr.addCounts(table.Limited{Memory: 8}, table.Limited{Memory: 10, Connections: 7, Requests: 9}, now)
	tr.addExit(errors.New("it reached its memory limit of 256 MiB"), now)
	for _, part := range []string{
		"since 13:21:00 it has ended 1 times and was started again, the last time since it reached its memory limit of 256 MiB",
		"since 13:12:00 5 connections and requests were refused or cut for lack of memory, of clients with many: --ingress-memory, which is 256Mi,",
		"since 13:21:00 7 connections were refused, or idle ones closed, at the limit for one client or for all: --ingress-max-connections, which is 4000,",
		"since 13:21:00 9 requests of HTTP/2 or HTTP/3 were refused",
	} {
		testenv.Contains(t, said(), part, "it says")
	}
	now = now.Add(10*time.Minute + time.Second)
	testenv.Equal(t, said(), "", "ten minutes after the last one it says")
	tr.addCounts(table.Limited{}, table.Limited{Memory: 1}, now)
	testenv.Contains(t, said(), "since 13:31:01 1 connections", "of a later one it says")
}

// TestStatusNamesALimitThatClientsMeet: the line of the ingress names the limit of connections once clients meet it.
func TestStatusNamesALimitThatClientsMeet(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	n.o.NodeIPs, n.o.MaxConnections = []netip.Addr{netip.MustParseAddr(machineIP)}, 100
	a := startAgent(n)
	eventually(t, "the proxy serves", func() bool { return a.board.Components()[0].State == status.Running })
	for range 53 { // one address may have half of them
		conn := testenv.Must(net.Dial("tcp", net.JoinHostPort(machineIP, strconv.Itoa(table.NodeHTTPPort))))(t)
		defer conn.Close()
	}
	eventually(t, "the status names it", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a.node.stats(ctx) // as a scrape of the metrics does; the agent itself asks every 30 s
		c := a.board.Components()[0]
		return c.State == status.Degraded && strings.Contains(c.Message,
			"3 connections were refused, or idle ones closed, at the limit for one client or for all: --ingress-max-connections, which is 100")
	})
}
