// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRequestsEndInTime(t *testing.T) {
	slow := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/begun":
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/slow":
			<-r.Context().Done()
		}
	})
	b := service("b")
	with := func(path string, p table.Policy) table.Route {
		return table.Route{Path: path, Kind: table.PathPrefix, Backends: []table.Backend{b}, Policy: &p}
	}
	f := newFixture(t, Options{}, append(hostWith(t,
		with("/slow/request", table.Policy{RequestMillis: 100, Path: &table.PathChange{Value: "/slow"}}),
		with("/slow/backend", table.Policy{RequestMillis: 60_000, BackendMillis: 100, Path: &table.PathChange{Value: "/slow"}}),
		with("/begun", table.Policy{RequestMillis: int(standstill.Milliseconds())}), // it has begun by then
		with("/fast", table.Policy{RequestMillis: 60_000}),
	), section(t, b.Key(), table.Endpoints{Addresses: []string{slow}}))...)
	exchanged{url: "http://a/slow/request", status: 504}.check(t, f)
	exchanged{url: "http://a/slow/backend", status: 504}.check(t, f)
	exchanged{url: "http://a/fast", status: 200}.check(t, f)
	c := client(t, f.http, "http1")
	c.Timeout = patience
	res := testenv.Must(c.Get("http://a/begun"))(t)
	defer res.Body.Close()
	if text, err := io.ReadAll(res.Body); err == nil || string(text) != "begun" || strings.Contains(err.Error(), "Timeout") {
		t.Errorf("a response that has begun gives %q, %v", text, err)
	}
}

// TestErrorsForOthersStayHTTP asks as a client of gRPC-Web does.
func TestErrorsForOthersStayHTTP(t *testing.T) {
	f := newFixture(t, Options{})
	res := testenv.Must(client(t, f.http, "h2c").Post("http://a/s/m", "application/grpc-web+proto", strings.NewReader("x")))(t)
	if body(t, res); res.StatusCode != http.StatusNotFound || res.Header.Get("Grpc-Status") != "" {
		t.Errorf("an error for gRPC-Web is %s %v", res.Status, res.Header)
	}
}

// TestErrorsHaveStatusOfGRPC asks as clients of gRPC do.
func TestErrorsHaveStatusOfGRPC(t *testing.T) {
	dead, none := service("dead"), service("none")
	f := newFixture(t, Options{}, append(hostWith(t,
		table.Route{Path: "/s/dead", Kind: table.PathExact, Backends: []table.Backend{dead}},
		table.Route{Path: "/s/none", Kind: table.PathExact, Backends: []table.Backend{none}},
		table.Route{Path: "/s/invalid", Kind: table.PathExact, Backends: []table.Backend{{Invalid: "no Service"}}},
		table.Route{Path: "/s/denied", Kind: table.PathExact, Backends: to("b"), Policy: &table.Policy{Allow: []string{"10.0.0.0/8"}}},
	), section(t, dead.Key(), table.Endpoints{Addresses: []string{closed(t)}}), section(t, none.Key(), table.Endpoints{}))...)
	for _, protocol := range []string{"h2c", "h2", "http1"} {
		address, scheme := f.http, "http"
		if protocol == "h2" {
			address, scheme = f.https, "https"
		}
		for path, want := range map[string]string{"/s/absent": "12", "/s/dead": "14", "/s/none": "14", "/s/invalid": "14", "/s/denied": "7", "/s/%00": "13"} {
			req := testenv.Must(http.NewRequest(http.MethodPost, scheme+"://a"+path, strings.NewReader("\x00\x00\x00\x00\x00")))(t)
			req.Header.Set("Content-Type", "application/grpc+proto")
			req.Header.Set("TE", "trailers")
			res := testenv.Must(client(t, address, protocol).Do(req))(t)
			text := body(t, res)
			if protocol == "http1" {
				testenv.True(t, res.StatusCode >= 400 && res.Header.Get("Grpc-Status") == "",
					"%s by HTTP/1.1: %s %v", path, res.Status, res.Header)
				continue
			}
			if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/grpc" || res.Header.Get("Grpc-Status") != want ||
				res.Header.Get("Grpc-Message") == "" || text != "" {
				t.Errorf("%s by %s: %s %v %q, want the status %s", path, protocol, res.Status, res.Header, text, want)
			}
		}
	}
}

func TestGatewayCORSFiltersSetHeaders(t *testing.T) {
	cors := func(path string, c table.CORS) table.Route {
		c.Gateway, c.MaxAgeSeconds = true, 5
		return table.Route{Path: path, Kind: table.PathPrefix, Backends: to("b"), Policy: &table.Policy{CORS: &c}}
	}
	f := newFixture(t, Options{}, hostWith(t,
		cors("/some", table.CORS{Origins: []string{"https://www.foo.com", "https://*.bar.com"}, Methods: "GET, OPTIONS", Headers: "x-1, x-2", Expose: "x-3", Credentials: true}),
		cors("/any", table.CORS{Origins: []string{"*"}, Methods: "*", Headers: "*"}),
		cors("/credentials", table.CORS{Origins: []string{"*"}, Methods: "*", Headers: "*", Credentials: true}),
		cors("/plain", table.CORS{Origins: []string{"https://www.foo.com"}}),
	)...)
	const origin, methods, headers, credentials = "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Allow-Credentials"
	preflight := func(from string) map[string]string {
		return map[string]string{"Origin": from, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-1, x-2"}
	}
	for _, e := range []exchanged{
		{url: "http://a/some", method: "OPTIONS", headers: preflight("https://www.foo.com"), status: 204, answer: map[string]string{
			origin: "https://www.foo.com", methods: "GET, OPTIONS", headers: "x-1, x-2", credentials: "true", "Access-Control-Expose-Headers": "x-3", "Access-Control-Max-Age": "5"}},
		{url: "http://a/some", method: "OPTIONS", headers: preflight("https://a.b.bar.com"), status: 204, answer: map[string]string{origin: "https://a.b.bar.com"}},
		{url: "http://a/some", method: "OPTIONS", headers: preflight("https://foobar.com"), status: 204, answer: map[string]string{origin: "", methods: ""}},
		{url: "http://a/some", method: "OPTIONS", headers: preflight("https://bar.com"), status: 204, answer: map[string]string{origin: ""}},
		{url: "http://a/some", method: "OPTIONS", body: "b /some"},
		{url: "http://a/some", headers: map[string]string{"Origin": "https://www.foo.com"}, body: "b /some", answer: map[string]string{origin: "https://www.foo.com", credentials: "true"}},
		{url: "http://a/some", headers: map[string]string{"Origin": "https://foobar.com"}, body: "b /some", answer: map[string]string{origin: ""}},
		{url: "http://a/any", method: "OPTIONS", headers: preflight("https://x:81"), status: 204, answer: map[string]string{origin: "*", methods: "*", headers: "*", credentials: ""}},
		{url: "http://a/credentials", method: "OPTIONS", headers: preflight("https://x:81"), status: 204, answer: map[string]string{
			origin: "https://x:81", methods: "PUT", headers: "x-1, x-2", credentials: "true", "Vary": "Origin"}},
		{url: "http://a/plain", method: "OPTIONS", headers: preflight("https://www.foo.com"), status: 204, answer: map[string]string{origin: "https://www.foo.com", methods: "", headers: ""}},
	} {
		e.check(t, f)
	}
}
