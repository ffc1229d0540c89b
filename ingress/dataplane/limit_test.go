// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestConnectionsAreLimitedByAddressAndInAll(t *testing.T) {
	l := newConnections(4)
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	open := map[netip.Addr][]*counted{}
	acquire := func(source netip.Addr) bool {
		one, _ := l.acquire(source)
		if one != nil {
			open[source] = append(open[source], one)
		}
		return one != nil
	}
	for i, step := range []struct {
		source netip.Addr
		want   bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {c, true}, {c, false}, {b, false}} {
		testenv.Equal(t, acquire(step.source), step.want, "connection %d from %s is taken:", i, step.source)
	}
	open[a][0].uncount()
	testenv.True(t, acquire(b), "a place that was given back is not taken")
	for _, all := range open {
		for _, one := range all {
			one.uncount()
			one.uncount() // closing twice counts once
		}
	}
	testenv.False(t, l.total != 0 || len(l.sources) != 0, "%d connections of %v are left", l.total, l.sources)
}

func TestSourceOfAConnection(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1", "[2001:db8::1:2:3:4]:80": "2001:db8::", "[fe80::1%1]:80": "fe80::",
	} {
		testenv.Equal(t, sourceOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))).String(), want, "%s counts for", from)
	}
}

// TestConnectionsAreBounded: what is more than the limit is closed, and a connection that ends makes room, a
// websocket's, too.
func TestConnectionsAreBounded(t *testing.T) {
	f := newFixture(t, Options{MaxConnections: 4}, site(t, "", websocketBackend(t, echo))...)
	first, _ := dialWebsocket(t, f, false, "") // all are of one source
	dialWebsocket(t, f, true, "")
	refused := testenv.Must(net.Dial("tcp", f.http))(t)
	defer refused.Close()
	if n, err := refused.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a connection beyond the limit got %d bytes, %v", n, err)
	}
	testenv.Equal(t, f.Stats().Refused.Load(), 1, "are counted as refused:")
	_ = first.Close()
	waitUntil(t, "the limit has room again", func() bool {
		f.limits.connections.mu.Lock()
		defer f.limits.connections.mu.Unlock()
		return f.limits.connections.total == 1
	})
	dialWebsocket(t, f, true, "")
}

// TestKeptConnectionClosesWithAResponse: a connection that is kept alive is closed with a response, never before one,
// and a websocket goes on until End.
func TestKeptConnectionClosesWithAResponse(t *testing.T) {
	p := newProxy(t, Options{DrainTimeout: time.Millisecond})
	p.Apply(site(t, "", websocketBackend(t, echo)))
	l := listen(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, "s", false, l) }()
	tunnel, answers := dialWebsocket(t, &fixture{http: l.Addr().String()}, false, "")
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	ask := func() *http.Response {
		res := testenv.Must(client.Post("http://"+l.Addr().String(), "text/plain", strings.NewReader("not to be sent twice")))(t)
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		return res
	}
	testenv.False(t, ask().Close, "a response closes its connection before the handover")
	cancel(ErrHandedOver)
	waitUntil(t, "the socket is closed", func() bool {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	testenv.True(t, ask().Close, "a response after the handover keeps its connection")
	testenv.Must(io.WriteString(tunnel, "twelve bytes"))(t)
	expect(t, answers, "twelve bytes")
	select {
	case err := <-ended:
		t.Errorf("Serve ended while a websocket was open: %v", err)
	default:
	}
	p.End()
	testenv.Check(t, <-ended)
}
