// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// blackhole is an address to which packets are sent, and from which none comes.
func blackhole(t *testing.T) string {
	ns := netns.New(t)
	ns.Link(t, "hole", "uplink", []string{"192.0.2.1/24"}, []string{otherMachine + "/24"})
	link := testenv.Must(netlink.LinkByName("hole"))(t)
	testenv.NoError(t, netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: net.IPv4(192, 0, 2, 3), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 3}, State: netlink.NUD_PERMANENT,
	}))
	return "192.0.2.3:80"
}

// TestBlackholeIsAvoided: an endpoint that answers no SYN is avoided, whatever ends the requests that tried it.
func TestBlackholeIsAvoided(t *testing.T) {
	hole := blackhole(t)
	const short = 200 // ms
	for name, c := range map[string]struct {
		policy   *table.Policy
		patience time.Duration
		headers  http.Header
		protocol string
		status   int
	}{
		"the route's time-out":    {policy: &table.Policy{RequestMillis: short}, patience: patience, status: http.StatusOK},
		"the client's patience":   {patience: short * time.Millisecond, status: http.StatusOK},
		"of HTTP/2":               {patience: short * time.Millisecond, status: http.StatusOK, protocol: table.H2C},
		"of a websocket":          {patience: short * time.Millisecond, status: http.StatusSwitchingProtocols, headers: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}},
		"a websocket's time-out":  {policy: &table.Policy{RequestMillis: short}, patience: patience, status: http.StatusSwitchingProtocols, headers: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}},
		"with affinity to others": {policy: &table.Policy{RequestMillis: short, HashBy: "$arg_k"}, patience: patience, status: http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			good := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
				if c.status == http.StatusSwitchingProtocols {
					websocketHandler(t, echo)(w, r)
				}
			})
			b := service("b")
			b.Protocol = c.protocol
			p := newProxy(t, Options{})
			p.upstream.dialer.Timeout, p.upstream.tunnelDialer.Timeout = time.Second, time.Second // before anything serves
			f := serve(t, p, [2]string{"s", "s"}, section(t, table.HostKey("s", ""), table.Host{Routes: []table.Route{
				{Path: "/", Kind: table.PathPrefix, Backends: []table.Backend{b}, Policy: c.policy},
			}}), section(t, b.Key(), table.Endpoints{Addresses: []string{hole, good}}))
			// A request in five seconds tries the blackhole again.
			streak := 0
			waitUntil(t, "ten requests in a row succeed", func() bool {
				req := testenv.Must(http.NewRequest(http.MethodGet, "http://h/?k=12345678"[:12+streak%8], nil))(t)
				req.Header = c.headers.Clone()
				client := client(t, f.http, "http1")
				client.Timeout = c.patience
				res, err := client.Do(req)
				if streak++; err != nil || res.StatusCode != c.status {
					streak = 0
				}
				if err == nil {
					_ = res.Body.Close()
				}
				return streak >= 10
			})
		})
	}
}

// TestLeftDialsAreBounded: attempts to connect outlive their requests, and are not as many as clients wish.
func TestLeftDialsAreBounded(t *testing.T) {
	hole := blackhole(t)
	for name, headers := range map[string]http.Header{"requests": {}, "websockets": {"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, Options{})
			p.upstream.dialer.Timeout, p.upstream.tunnelDialer.Timeout = 10*patience, 10*patience // before anything serves
			f := serve(t, p, [2]string{"s", "s"}, site(t, "", hole)...)
			set := p.objects.endpoints[service("b").Key()]
			ctx, cancel := context.WithCancel(context.Background())
			var all sync.WaitGroup
			for range 3 * maxLeft {
				all.Go(func() {
					req := testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, "http://h/", nil))(t)
					req.Header = headers.Clone()
					if res, err := client(t, f.http, "http1").Do(req); err == nil {
						_ = res.Body.Close()
					}
				})
			}
			waitUntil(t, "all requests wait for a connection", func() bool { return dialling(t) == 3*maxLeft })
			cancel()
			all.Wait()
			waitUntil(t, "most attempts have ended", func() bool { return dialling(t) <= maxLeft })
			testenv.Equal(t, set.endpoints()[0].failed.Load(), 0, "an attempt that was cut short counts as failed at")
			p.upstream.http1.CloseIdleConnections()
			testenv.NoError(t, netlink.LinkSetDown(testenv.Must(netlink.LinkByName("hole"))(t)))
			testenv.NoError(t, netlink.LinkSetUp(testenv.Must(netlink.LinkByName("hole"))(t)))
		})
	}
}

// dialling is the number of connections of this network namespace without an answer to their SYN.
func dialling(t *testing.T) int {
	t.Helper()
	return bytes.Count(testenv.Must(os.ReadFile("/proc/thread-self/net/tcp"))(t), []byte(" 030200C0:0050 02 "))
}

// TestOneRequestTriesAFailedEndpointAgain once its pause is over; the others wait for what it finds.
func TestOneRequestTriesAFailedEndpointAgain(t *testing.T) {
	s := &endpointSet{}
	s.setAddresses([]string{"10.0.0.1:80", "10.0.0.2:80"})
	failed, now := s.endpoints()[0], time.Unix(1_000_000, 0)
	failed.failed.Store(now.UnixNano())
	for by, pick := range map[string]func(time.Time) *endpoint{
		"turns":  func(now time.Time) *endpoint { return s.nextInTurn(nil, now) },
		"a hash": func(now time.Time) *endpoint { return s.nextByHash(keyAt(t, s, failed), nil, now) },
	} {
		count := func(now time.Time) (n int) {
			for range 20 {
				if pick(now) == failed {
					n++
				}
			}
			return n
		}
		testenv.Equal(t, count(now.Add(failurePause)), 0, "by %s, during the pause it is tried", by)
		now = now.Add(failurePause + 1)
		testenv.Equal(t, count(now), 1, "by %s, after the pause it is tried", by)
		testenv.Equal(t, count(now.Add(failurePause)), 0, "by %s, before the next it is tried", by)
		now = now.Add(failurePause + 1)
		testenv.Equal(t, count(now), 1, "by %s, after the next pause it is tried", by)
		failed.failed.Store(0)
		testenv.True(t, count(now) >= 10, "by %s, it is avoided after a connection", by)
		failed.failed.Store(now.UnixNano())
	}
}

// keyAt is a key whose endpoint is e.
func keyAt(t *testing.T, s *endpointSet, e *endpoint) string {
	t.Helper()
	was := e.failed.Swap(0)
	defer e.failed.Store(was)
	for key := "k"; len(key) < 100; key += "k" {
		if s.nextByHash(key, nil, time.Time{}) == e {
			return key
		}
	}
	t.Fatal("no key has this endpoint")
	return ""
}
