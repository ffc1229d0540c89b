// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// clientAt is a client with connections of its own, from an address of this machine.
func clientAt(t *testing.T, source, to, protocol string) *http.Client {
	t.Helper()
	if protocol == "h3" {
		udp := testenv.Must(net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(source)}))(t)
		t.Cleanup(func() { _ = udp.Close() }) // after the client, which says that it ends
		c := client(t, to, protocol)
		c.Transport.(*http3.Transport).Dial = func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			at := testenv.Must(net.ResolveUDPAddr("udp", to))(t)
			return quic.Dial(ctx, udp, at, c, q)
		}
		return c
	}
	c := client(t, to, protocol)
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}).DialContext(ctx, network, to)
	}
	return c
}

// TestIdleConnectionsMakeRoom: two sources that hold all connections, idle, keep no other client out, whatever protocol
// they speak.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	for _, held := range []string{"nothing", "http1", "https", "h2", "h2c", "h3"} {
		t.Run("they hold "+held, func(t *testing.T) {
			most := 16
			if held == "h3" {
				most *= quicFraction
			}
			f := newFixture(t, Options{MaxConnections: most}, site(t, "", backend)...)
			open := func(source, protocol string) *http.Client {
				at, scheme, spoken := f.https, "https", protocol
				switch protocol {
				case "http1", "h2c":
					at, scheme = f.http, "http"
				case "https":
					spoken = "http1"
				case "h3":
					at = f.http3
				}
				c := clientAt(t, source, at, spoken)
				if status, _ := get(t, c, scheme+"://a/"); status != http.StatusOK {
					t.Errorf("%s by %s: %d", source, protocol, status)
				}
				return c
			}
			for range 8 {
				for _, source := range []string{"127.0.0.2", "127.0.0.3"} {
					if held == "nothing" {
						dialFrom(t, source, f.http)
					} else {
						open(source, held)
					}
				}
			}
			of := &f.limits.connections
			if held == "h3" {
				of = &f.limits.quic
			}
			waitUntil(t, "all are idle", func() bool {
				of.mu.Lock()
				defer of.mu.Unlock()
				for address := range of.sources {
					if of.sources[address].counts != [2]int{8, 8} {
						return false
					}
				}
				return of.total == 16
			})
			testenv.Equal(t, f.stats.Refused.Load(), 0, "are closed while there is room:")
			if held == "h3" {
				open("127.0.0.4", "h3")
			}
			for _, protocol := range []string{"http1", "https", "h2", "h2c"} {
				open("127.0.0.4", protocol)
			}
			want := uint64(4)
			if held == "h3" {
				want = 1
			}
			testenv.Equal(t, f.stats.Refused.Load(), want, "are closed to make room:")
			open("127.0.0.2", "http1") // at its own limit, the place of one of its own
		})
	}
}

// TestBusyConnectionsMakeRoom: a source that holds many busy connections loses one for a source that has none, and none
// for itself.
func TestBusyConnectionsMakeRoom(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := backendServer(t, func(w http.ResponseWriter, in *http.Request) {
		if in.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, "ok")
	})
	f := newFixture(t, Options{MaxConnections: 8}, site(t, "", backend)...)
	defer close(release)
	var held []net.Conn
	for range 4 {
		for _, source := range []string{"127.0.0.2", "127.0.0.3"} {
			conn := dialFrom(t, source, f.http)
			testenv.Must(io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"))(t)
			held = append(held, conn)
			<-arrived
		}
	}
	own := dialFrom(t, "127.0.0.2", f.http)
	if n, err := own.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a source closes busy connections of its own: %d bytes, %v", n, err)
	}
	if status, _ := get(t, clientAt(t, "127.0.0.4", f.http, "http1"), "http://a/"); status != http.StatusOK {
		t.Errorf("another source is answered with %d", status)
	}
	closed := func(conn net.Conn) bool {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := conn.Read(make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	testenv.True(t, closed(held[0]) != closed(held[1]), "the oldest of one source is not closed, or both")
	for _, conn := range held[2:] {
		testenv.False(t, closed(conn), "one that is not the oldest is closed")
	}
}

// TestConnectionLimitsAgreeWithAModel: after many random steps the counts, rankings and chains are those of a simple
// model.
func TestConnectionLimitsAgreeWithAModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := newConnections(12)
	l.limit = 12
	addresses := []netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
	type state struct {
		address netip.Addr
		idle    bool
	}
	open := map[*counted]*state{}
	count := func(address netip.Addr) (size, idle int) {
		for _, s := range open {
			if s.address == address {
				size++
				if s.idle {
					idle++
				}
			}
		}
		return size, idle
	}
	pick := func() *counted {
		for c := range open { // the order does not matter for what is compared
			return c
		}
		return nil
	}
	for range 20_000 {
		switch address, some := addresses[r.IntN(len(addresses))], pick(); r.IntN(5) {
		case 0, 1:
			own, _ := count(address)
			full, idle := address.IsValid() && own >= 6, 0
			for _, a := range addresses {
				if _, n := count(a); !full || a == address {
					idle = max(idle, n)
				}
			}
			all := len(open)
			c, cut := l.acquire(address)
			if cut != nil {
				cut()
			}
			switch {
			case !full && all < 12:
				testenv.True(t, c != nil && cut == nil, "there is room, and it is refused, or another is closed")
			case idle > 0:
				testenv.True(t, c != nil && cut != nil, "an idle one could have been closed")
			case full:
				testenv.True(t, c == nil && cut == nil, "a full source makes room for itself")
			}
			if c != nil {
				open[c] = &state{address, true}
				c.opened(func() {
					testenv.True(t, open[c].idle || idle == 0, "a busy one is closed while one is idle")
					delete(open, c)
				})
			}
		case 2, 3:
			if some != nil {
				open[some].idle = !open[some].idle
				some.setBusy(!open[some].idle)
			}
		case 4:
			if some != nil {
				some.uncount()
				delete(open, some)
			}
		}
		testenv.Equal(t, l.total, len(open), "count:")
		for _, a := range addresses {
			size, idle := count(a)
			if s := l.sources[a]; s == nil {
				testenv.Equal(t, size, 0, "connections of a source that is not known:")
			} else {
				testenv.Equal(t, s.counts, [2]int{idle, size}, "idle and all connections of %v:", a)
			}
		}
		for i := range l.ranks {
			order := l.ranks[i].order
			testenv.Equal(t, len(order), len(l.sources), "sources of a ranking:")
			for j := range order[:max(0, len(order)-1)] {
				testenv.True(t, order[j].counts[i] >= order[j+1].counts[i], "a ranking is not in order")
			}
		}
		if t.Failed() {
			return
		}
	}
}
