// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// TestExpressionsTakeBoundedTime: what a path costs follows from its length and from all expressions that it may be compared with.
func TestExpressionsTakeBoundedTime(t *testing.T) {
	backend := backendServer(t, showing("b"))
	slow := table.Host{}
	for i := range 20 {
		slow.Routes = append(slow.Routes, table.Route{Path: fmt.Sprintf("/%d(%sx)", i, strings.Repeat("(.*a){40}|", 4)), Kind: table.PathRegex, Backends: []table.Backend{service("b")}})
	}
	f := newFixture(t, Options{}, append(site(t, "", backend), section(t, table.HostKey("s", "slow"), slow))...)
	long := "/" + strings.Repeat("a", 8<<10)
	for _, c := range []struct {
		url    string
		status int
	}{{"http://slow/0x", 200}, {"http://slow/none", 200}, {"http://slow" + long, 414}, {"http://other" + long, 200}} {
		exchanged{url: c.url, status: c.status}.check(t, f)
	}
}

// TestDisguisedPathsAreRefused: a path that a lenient backend reads as one that needs a password does not get there by a route that needs none.
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
	conn, err := tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var fields bytes.Buffer
	encoder := hpack.NewEncoder(&fields)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a"}, {":path", "/a b?x HTTP/1.0"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	framer := http2.NewFramer(conn, conn)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		t.Fatal(err)
	}
	if line, _, _ := strings.Cut(<-got, "\r\n"); line != "GET /a%20b?x%20HTTP/1.0 HTTP/1.1" {
		t.Errorf("the backend got %q", line)
	}
}

// TestLoopsEnd: a backend, a websocket's backend or an authentication server at the proxy's own address does not make one request endless.
func TestLoopsEnd(t *testing.T) {
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
	got := exchangeRaw(t, f.http, "GET / HTTP/1.1\r\nHost: loop.example\r\nConnection: Upgrade, X-Coracle-Hops\r\nUpgrade: websocket\r\nX-Coracle-Hops: -1\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 508") {
		t.Errorf("a websocket: %q", got)
	}
	if n := f.stats.Requests[5].Load(); n > 3*maxHops+3 {
		t.Errorf("three requests became %d", n)
	}
}
