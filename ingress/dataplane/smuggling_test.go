// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// recorder is a backend that keeps the bytes of its first request, up to the end of its body in the way that the last
// line of the header allows, and closes.
func recorder(t *testing.T) (address string, got <-chan string) {
	out := make(chan string, 8) // more than any test sends
	return accepting(t, func(conn net.Conn) {
		var seen strings.Builder
		req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(conn, &seen)))
		if err == nil {
			_, err = io.Copy(io.Discard, req.Body)
		}
		if err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
		_ = conn.Close()
		out <- seen.String()
	}), out
}

// TestUnreadBodyIsNotTheNextRequest: the proxy answers by itself, and the connection goes on behind the body.
func TestUnreadBodyIsNotTheNextRequest(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "saw "+r.RequestURI) })
	refused := routed("x", "/closed")
	refused.Routes[0].Refused = "closed"
	f := newFixture(t, Options{}, append(site(t, "", backend), section(t, table.HostKey("s", "a"), refused))...)
	inner := "GET /inner HTTP/1.1\r\nHost: b\r\n\r\n"
	next := "GET /next HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
	f.Apply([]table.Change{section(t, table.HostKey("s", "dead"), routed("dead", "/")),
		section(t, service("dead/").Key(), table.Endpoints{Addresses: []string{closed(t)}})})
	for name, request := range map[string]string{
		"no connection": fmt.Sprintf("POST / HTTP/1.1\r\nHost: dead\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner),
		"length":        fmt.Sprintf("POST /closed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner),
		"chunks":        fmt.Sprintf("POST /closed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(inner), inner),
	} {
		got := exchangeRaw(t, f.http, request+next)
		if strings.Count(got, "HTTP/1.1 ") != 2 || !strings.HasPrefix(got, "HTTP/1.1 50") || !strings.HasSuffix(got, "saw /next") {
			t.Errorf("%s: the client got %q", name, got)
		}
	}
}

// An attacker who is a client sends requests that servers read in different ways; no backend must get any of them.
func TestMalformedRequestsReachNoBackend(t *testing.T) {
	arrived := make(chan string, 100) // more than there are cases
	backend := backendServer(t, func(_ http.ResponseWriter, r *http.Request) { arrived <- r.RequestURI })
	f := newFixture(t, Options{}, site(t, "", backend)...)
	for name, request := range map[string]string{
		"two lengths":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"negative length":        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
		"signed length":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
		"encoding twice":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"unknown encoding":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"encoding with tab":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"space before colon":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"two hosts":              "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"no host":                "GET / HTTP/1.1\r\n\r\n",
		"host with path":         "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"zero byte in a header":  "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
		"line feed in the path":  "GET /a\nb HTTP/1.1\r\nHost: a\r\n\r\n",
		"header of 100 KB":       "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
		"encoded dots and slash": "GET /a/..%2f..%2fb HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
		"HTTP/2 preface, broken": "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
	} {
		answer := exchangeRaw(t, f.http, request)
		testenv.False(t, strings.HasPrefix(answer, "HTTP/1.1 2"), "%s: answered with %q", name, answer)
		if len(arrived) != 0 {
			t.Errorf("%s: the backend got %q", name, <-arrived)
		}
	}
}

func TestFoldedHeadersAndAbsoluteTargetsAreSentPlainly(t *testing.T) {
	backend, got := recorder(t)
	f := newFixture(t, Options{}, site(t, "", backend)...)
	exchangeRaw(t, f.http, "GET http://b.example/a/../c HTTP/1.1\r\nHost: a\r\nX-Folded: one\r\n two\r\nConnection: close\r\n\r\n")
	seen := <-got
	if !strings.HasPrefix(seen, "GET /c HTTP/1.1\r\nHost: b.example\r\n") || !strings.Contains(seen, "X-Folded: one two\r\n") {
		t.Errorf("the backend got %q", seen)
	}
}

// TestUpgradesOtherThanWebsocketAreNotPassed: h2c behind an upgrade would be a way past the routes.
func TestUpgradesOtherThanWebsocketAreNotPassed(t *testing.T) {
	for _, upgrade := range []string{"h2c", "h2c, websocket", "TLS/1.0", "websocket\r\nUpgrade: h2c"} {
		backend, got := recorder(t)
		f := newFixture(t, Options{}, site(t, "", backend)...)
		exchangeRaw(t, f.http, "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: "+upgrade+"\r\nConnection: close, Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
		if seen := <-got; strings.Contains(seen, "pgrade") || strings.Contains(strings.ToLower(seen), "http2-settings") {
			t.Errorf("for %q the backend got %q", upgrade, seen)
		}
	}
}
