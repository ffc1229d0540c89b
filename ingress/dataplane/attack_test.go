// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestExpressionsTakeBoundedTime: what a path costs follows from its length and from all expressions that it may be
// compared with.
func TestExpressionsTakeBoundedTime(t *testing.T) {
	backend := backendServer(t, showing("b"))
	slow := table.Host{}
	for i := range 20 {
		slow.Routes = append(slow.Routes, table.Route{Path: fmt.Sprintf("/%d(%sx)", i, strings.Repeat("(.*a){40}|", 4)), Kind: table.PathRegex, Backends: []table.Backend{service("b")}})
	}
	f := newFixture(t, Options{}, append(site(t, "", backend), section(t, table.HostKey("s", "slow"), slow))...)
	pattern := fmt.Sprintf("(%sx)", strings.Repeat("(.*a){40}|", 4))
	f.Apply([]table.Change{
		section(t, table.HostKey("s", "headers"), table.Host{Routes: []table.Route{{
			Path: "/", Kind: table.PathPrefix, Headers: []table.Condition{{Name: "X", Value: pattern, Regex: true}}, Backends: []table.Backend{service("b")},
		}}}),
		section(t, table.HostKey("s", "canary"), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix, Backends: []table.Backend{service("b")}, Policy: &table.Policy{
			Canary: &table.Canary{Backend: service("b"), Header: "X", HeaderPattern: pattern, WeightTotal: 1},
		}}}}),
	})
	for host, status := range map[string]int{"headers": 503, "canary": 200} {
		exchanged{url: "http://" + host + "/", status: 200, headers: map[string]string{"X": "x"}}.check(t, f)
		exchanged{url: "http://" + host + "/", status: status, headers: map[string]string{"X": strings.Repeat("a", 12<<10)}}.check(t, f)
	}
	long := "/" + strings.Repeat("a", 8<<10)
	for _, c := range []struct {
		url    string
		status int
	}{{"http://slow/0x", 200}, {"http://slow/none", 200}, {"http://slow" + long, 503}, {"http://other" + long, 200}} {
		exchanged{url: c.url, status: c.status}.check(t, f)
	}
}

// TestDisguisedPathsAreRefused: a path that a lenient backend reads as one that needs a password does not get there by
// a route that needs none.
func TestDisguisedPathsAreRefused(t *testing.T) {
	c := cluster{
		ingresses: []*networkingv1.Ingress{
			object("n/open", "coracle", nil, "a.example/=open", "a.example/api=open"), object("n/closed", "coracle", annotations{"whitelist-source-range": "192.0.2.1"}, "a.example/admin=closed",
				"a.example=/exact=closed"),
			object("n/all", "coracle", annotations{"whitelist-source-range": "0.0.0.0/0"}, "b.example/=all", "b.example/api=all"),
		},
	}
	f, _ := c.serve(t)
	for _, e := range []exchanged{
		{url: "http://a.example/admin", status: 403}, {url: "http://a.example/admin/x", status: 403}, {url: "http://a.example/x/%2e%2e/admin", status: 403},
		{url: "http://a.example/admin%2Fx", status: 400}, {url: "http://a.example/admin;x=1/y", status: 400}, {url: "http://a.example/admin;", status: 400},
		{url: "http://a.example/admin%3Bx/y", status: 400}, {url: "http://a.example/admin%5Cx", status: 400}, {url: "http://a.example/%2Fadmin", status: 400},
		{url: "http://a.example/;/admin/x", status: 400}, {url: "http://a.example/exact;x", status: 400},
		{url: "http://a.example/api/a%2Fb;c=1", body: "open /api/a%2Fb;c=1"}, {url: "http://a.example/a%2Fadmin", body: "open /a%2Fadmin"},
		{url: "http://a.example/api%2Fb", body: "open /api%2Fb"}, {url: "http://b.example/api%2Fb", body: "all /api%2Fb"},
	} {
		e.check(t, f)
	}
}

// TestRequestLinesAreOfOneTarget: HTTP/2 allows spaces in :path, and HTTP/1.1 would read what follows as the version.
func TestRequestLinesAreOfOneTarget(t *testing.T) {
	backend, got := recorder(t)
	f := newFixture(t, Options{}, site(t, "", backend)...)
	conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}))(t)
	defer conn.Close()
	var fields bytes.Buffer
	encoder := hpack.NewEncoder(&fields)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a"}, {":path", "/a b?x HTTP/1.0"}} {
		testenv.NoError(t, encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
	}
	framer := http2.NewFramer(conn, conn)
	testenv.Must(io.WriteString(conn, http2.ClientPreface))(t)
	testenv.NoError(t, framer.WriteSettings())
	testenv.NoError(t,
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true, EndStream: true}))
	if line, _, _ := strings.Cut(<-got, "\r\n"); line != "GET /a%20b?x%20HTTP/1.0 HTTP/1.1" {
		t.Errorf("the backend got %q", line)
	}
}

// TestRequestLoopsAreBroken: a backend, a websocket's backend or an authentication server at the proxy's own address
// does not make one request endless.
func TestRequestLoopsAreBroken(t *testing.T) {
	backend := backendServer(t, showing("b"))
	f := newFixture(t, Options{}, append(site(t, "", backend), section(t, table.HostKey("s", "auth.example"), table.Host{Routes: []table.Route{{
		Path: "/", Kind: table.PathPrefix, Object: "Ingress/n/x", Backends: []table.Backend{service("b")},
		Policy: &table.Policy{External: &table.External{URL: "http://auth.example/", Backend: &table.Backend{Namespace: "n", Service: "self", Port: "80"}}},
	}}}), section(t, table.HostKey("s", "loop.example"), table.Host{Routes: []table.Route{{
		Path: "/", Kind: table.PathPrefix, Object: "Ingress/n/y", Backends: []table.Backend{service("self")},
	}}}))...)
	f.Apply([]table.Change{section(t, service("self").Key(), table.Endpoints{Addresses: []string{f.http}})})
	exchanged{url: "http://loop.example/", status: 508}.check(t, f)
	exchanged{url: "http://auth.example/", status: 500}.check(t, f)
	got := exchangeRaw(t, f.http, "GET / HTTP/1.1\r\nHost: loop.example\r\nConnection: close, Upgrade, X-Coracle-Hops\r\nUpgrade: websocket\r\nX-Coracle-Hops: -1\r\n\r\n")
	testenv.True(t, strings.HasPrefix(got, "HTTP/1.1 508"), "a websocket: %q", got)
	if n := f.stats.Requests[5].Load(); n > 3*maxHops+3 {
		t.Errorf("three requests became %d", n)
	}
}

// TestGuessesAtOneTenantsDelayNoOther: of a flood of logins of one namespace one at a time is compared or waits for a
// processor, and another tenant's login waits for none of them.
func TestGuessesAtOneTenantsDelayNoOther(t *testing.T) {
	hash := "u:" + "$2y$04$0123456789012345678901" + "abcdefghijklmnopqrstuvwxyzabcde"
	auth := annotations{"auth-type": "basic", "auth-secret": "s"}
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{object("a/x", "coracle", auth, "a/=w"), object("b/x", "coracle", auth, "b/=w")},
		secrets:   map[string]map[string]string{"a/s": {"auth": hash}, "b/s": {"auth": hash}},
	}.serve(t)
	turn, leave := f.comparisons.join("login a")
	defer leave()
	testenv.Equal(t, cap(turn), 1, "logins of a namespace that are compared at a time:")
	turn <- struct{}{} // one of the flood is being compared, until the other tenant's login has its answer
	const flood = 40
	done := make(chan struct{}, flood)
	try := func(host string) {
		exchanged{url: "http://" + host + "/", headers: login("u", "guess"), status: 401}.check(t, f)
	}
	for range flood {
		go func() {
			defer func() { done <- struct{}{} }()
			try("a")
		}()
	}
	waitUntil(t, "the flood is there", func() bool { return f.stats.Connections.Load() >= flood })
	try("b")
	testenv.Equal(t, len(done), 0, "answered while one of the flood was being compared:")
	<-turn
	for range flood {
		<-done
	}
}

// TestLimitsCountMachines: a client that changes the last 64 bits of its address counts as the same.
func TestLimitsCountMachines(t *testing.T) {
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{object("a/x", "coracle", annotations{"limit-rpm": "1", "limit-burst-multiplier": "1"}, "a/=w")},
		settings:  table.Settings{TrustedProxies: []string{"127.0.0.0/8"}},
	}.serve(t)
	refused := 0
	for i := range 20 {
		req := exchanged{url: "http://a/", headers: from(fmt.Sprintf("2001:db8::%d", i))}
		if status, _ := statusOf(t, f, req); status == 503 {
			refused++
		}
	}
	testenv.True(t, refused != 0, "twenty addresses of one machine were all let in")
	if status, _ := statusOf(t, f, exchanged{url: "http://a/", headers: from("2001:db8:0:1::1")}); status != 200 {
		t.Errorf("another machine is answered with %d", status)
	}
}

func statusOf(t *testing.T, f *fixture, e exchanged) (int, string) {
	t.Helper()
	req := testenv.Must(http.NewRequest(http.MethodGet, e.url, nil))(t)
	for name, value := range e.headers {
		req.Header.Set(name, value)
	}
	res := testenv.Must(client(t, f.http, "http1").Do(req))(t)
	return res.StatusCode, body(t, res)
}
