// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestAffinityKeepsClientAtItsEndpoint(t *testing.T) {
	a := annotations{"affinity": "cookie", "session-cookie-name": "at", "session-cookie-max-age": "60", "session-cookie-samesite": "Lax", "session-cookie-path": "/p",
		"affinity-mode": "persistent"}
	f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", a, "h/=w"), object("a/y", "nginx", annotations{"affinity": "ip"}, "g/=w"),
		object("a/z", "nginx", annotations{"upstream-hash-by": "$arg_k"}, "k/=w")}}.serve(t)
	var all []string
	for i := range 5 {
		all = append(all, backendServer(t, showing(fmt.Sprint("e", i))))
	}
	f.Apply([]table.Change{section(t, table.KindEndpoints+"/a/w/80", table.Endpoints{Addresses: all})})
	seen := map[string]bool{}
	for range 20 {
		res := exchanged{url: "http://h/"}.check(t, f)
		cookieHeader := res.Header.Get("Set-Cookie")
		if !strings.HasPrefix(cookieHeader, "at=") || !strings.HasSuffix(cookieHeader, "; Path=/p; Max-Age=60; HttpOnly; SameSite=Lax") {
			t.Fatalf("the cookie is %q", cookieHeader)
		}
		cookie, _, _ := strings.Cut(cookieHeader, ";")
		first := ""
		for range 3 {
			req, _ := http.NewRequest(http.MethodGet, "http://h/", nil)
			req.Header.Set("Cookie", cookie)
			res := testenv.Must(client(t, f.http, "http1").Do(req))(t)
			got := body(t, res)
			testenv.False(t, first != "" && first != got, "the client went from %q to %q", first, got)
			if first = got; res.Header.Get("Set-Cookie") != "" {
				t.Error("the client got another cookie")
			}
		}
		seen[first] = true
	}
	testenv.True(t, len(seen) >= 2, "all clients went to %v", seen)
	one := map[string]bool{}
	for range 10 {
		_, got := get(t, client(t, f.http, "http1"), "http://k/?k=7")
		one[got] = true
	}
	testenv.True(t, len(one) == 1, "one key went to %v", one)
	testenv.Contains(t, reasons(r), "cookie alone", "")
	exchanged{url: "http://g/", status: 503}.check(t, f)
}

func TestAffinityCookieHasConfiguredAttributes(t *testing.T) {
	for _, c := range []struct {
		name      string
		more      annotations
		rule, url string
		want      string // what follows the cookie's value
	}{
		{"a name", nil, "h/=w", "http://h/", "; Path=/; HttpOnly"},
		{"a domain", annotations{"session-cookie-domain": "foo.bar"}, "h/=w", "http://h/", "; Path=/; Domain=foo.bar; HttpOnly"},
		{"two ages", annotations{"session-cookie-expires": "172800", "session-cookie-max-age": "259200"}, "h/=w", "http://h/", "; Path=/; Max-Age=259200; HttpOnly"},
		{"an age", annotations{"session-cookie-expires": "172800"}, "h/=w", "http://h/", "; Path=/; Max-Age=172800; HttpOnly"},
		{"secure by http", annotations{"session-cookie-secure": "true"}, "h/=w", "http://h/", "; Path=/; HttpOnly; Secure"},
		{"not secure by http", annotations{"session-cookie-secure": "false"}, "h/=w", "http://h/", "; Path=/; HttpOnly"},
		{"always secure by https", annotations{"session-cookie-secure": "false"}, "h/=w", "https://h/", "; Path=/; HttpOnly; Secure"},
		{"no host", nil, "/=w", "http://any/", "; Path=/; HttpOnly"},
		{"an alias", annotations{"server-alias": "a1.h, a2.h"}, "h/=w", "http://a2.h/", "; Path=/; HttpOnly"},
		{"an expression", annotations{"use-regex": "true", "session-cookie-path": "/foo/bar"}, "h~/foo/.*=w", "http://h/foo/bar", "; Path=/foo/bar; HttpOnly"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := cluster{ingresses: []*networkingv1.Ingress{
				object("a/x", "nginx", with(annotations{"affinity": "cookie", "session-cookie-name": "at"}, c.more), c.rule), object("a/y", "nginx", nil, "h/other=w"),
			}}.serve(t)
			if got := (exchanged{url: c.url}).check(t, f).Header.Get("Set-Cookie"); len(got) < 29 || got[:3] != "at=" || got[29:] != c.want {
				t.Errorf("the cookie is %q", got)
			}
			exchanged{url: "http://h/other", body: "w /other", answer: map[string]string{"Set-Cookie": ""}}.check(t, f)
		})
	}
}

// TestRankMovesFewKeys removes an endpoint, and lets another one fail.
func TestRankMovesFewKeys(t *testing.T) {
	s := &endpointSet{}
	s.setAddresses([]string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"})
	now := time.Unix(1_000_000, 0)
	before, count := map[string]string{}, map[string]int{}
	for i := range 1000 {
		key := fmt.Sprint(i)
		before[key] = s.nextByHash(key, nil, now).address
		count[before[key]]++
	}
	for address, n := range count {
		testenv.False(t, n < 150 || n > 350, "%s has %d of 1000 keys", address, n)
	}
	s.setAddresses([]string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"})
	s.endpoints()[0].failed.Store(now.UnixNano())
	for key, was := range before {
		switch is := s.nextByHash(key, nil, now).address; {
		case is == "10.0.0.1:80":
			t.Fatal("a key is at an endpoint that cannot be reached")
		case is != was && was != "10.0.0.3:80" && was != "10.0.0.1:80":
			t.Fatalf("the key %s went from %s to %s", key, was, is)
		}
	}
	testenv.True(t, s.nextByHash("x", s.endpoints(), now) == nil, "an endpoint is tried twice")
}

func TestCanaryAnnotationsChooseBackend(t *testing.T) {
	main := object("a/main", "nginx", annotations{"whitelist-source-range": "127.0.0.1"}, "h/=main", "h/p=main")
	header := func(name, value string) map[string]string { return map[string]string{name: value} }
	canary := func(a annotations) annotations { return with(annotations{"canary": "true"}, a) }
	rest := object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C"}))
	rest.Spec.DefaultBackend = &object("a/c", "nginx", nil, "h/=new").Spec.Rules[0].HTTP.Paths[0].Backend
	for _, c := range []struct {
		name     string
		canary   *networkingv1.Ingress
		requests []exchanged
		finding  string
	}{
		{"all", object("a/c", "nginx", canary(annotations{"canary-weight": "100"}), "h/=new"), []exchanged{
			{url: "http://h/", body: "new /"}, {url: "http://h/p", body: "main /p"}}, ""},
		{"of another total", object("a/c", "nginx", canary(annotations{"canary-weight": "100", "canary-weight-total": "100"}), "h/p/=new"), []exchanged{{url: "http://h/p", body: "main /p"}}, "no other Ingress"},
		{"none", object("a/c", "nginx", canary(annotations{"canary-weight": "0"}), "h/=new"), []exchanged{{url: "http://h/", body: "main /"}}, ""},
		{"a header", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-weight": "100"}), "h/=new"), []exchanged{
			{url: "http://h/", headers: header("X-C", "never"), body: "main /"}, {url: "http://h/", headers: header("X-C", "else"), body: "new /"}}, ""},
		{"a header's value", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-by-header-value": "v"}), "h/=new"), []exchanged{
			{url: "http://h/", headers: header("X-C", "v"), body: "new /"}, {url: "http://h/", headers: header("X-C", "always"), body: "main /"}, {url: "http://h/", body: "main /"}}, ""},
		{"a header's pattern", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-by-header-pattern": "v[0-9]"}), "h/=new"), []exchanged{
			{url: "http://h/", headers: header("X-C", "v7"), body: "new /"}, {url: "http://h/", headers: header("X-C", "v"), body: "main /"}}, ""},
		{"a cookie", object("a/c", "nginx", canary(annotations{"canary-by-cookie": "c", "canary-weight": "100"}), "h/=new"), []exchanged{
			{url: "http://h/", headers: header("Cookie", "c=never"), body: "main /"}, {url: "http://h/", headers: header("Cookie", "c=always"), body: "new /"}}, ""},
		{"of another namespace", object("b/c", "nginx", canary(annotations{"canary-weight": "100"}), "h/=new"), []exchanged{{url: "http://h/", body: "main /"}}, "no other Ingress"},
		{"a pattern that is none", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-by-header-pattern": "(", "canary-weight": "100"}), "h/=new"),
			[]exchanged{{url: "http://h/", body: "main /"}}, "no expression"},
		{"a header alone", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C"}), "h/=new"), []exchanged{
			{url: "http://h/", headers: header("X-C", "always"), body: "new /"}, {url: "http://h/", headers: header("X-C", "never"), body: "main /"},
			{url: "http://h/", headers: header("X-C", "else"), body: "main /"}, {url: "http://h/", body: "main /"}}, ""},
		{"a value before a pattern", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-by-header-value": "v", "canary-by-header-pattern": "v+"}), "h/=new"),
			[]exchanged{{url: "http://h/", headers: header("X-C", "vv"), body: "main /"}, {url: "http://h/", headers: header("X-C", "v"), body: "new /"}}, ""},
		{"a cookie alone", object("a/c", "nginx", canary(annotations{"canary-by-cookie": "c"}), "h/=new"), []exchanged{
			{url: "http://h/", headers: header("Cookie", "c=never"), body: "main /"}, {url: "http://h/", headers: header("Cookie", "c=always"), body: "new /"},
			{url: "http://h/", headers: header("Cookie", "c=else"), body: "main /"}}, ""},
		{"a cookie after a header", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-by-header-value": "v", "canary-by-cookie": "c"}), "h/=new"),
			[]exchanged{{url: "http://h/", headers: with(header("X-C", "else"), header("Cookie", "c=always")), body: "new /"}}, ""},
		{"a pattern that is none beside a cookie", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C", "canary-by-header-pattern": "[][**da?$&*", "canary-by-cookie": "c"}), "h/=new"),
			[]exchanged{{url: "http://h/", headers: with(header("X-C", "v"), header("Cookie", "c=always")), body: "main /"}}, "no expression"},
		{"the whole total", object("a/c", "nginx", canary(annotations{"canary-weight": "1000", "canary-weight-total": "1000"}), "h/=new"), []exchanged{{url: "http://h/", body: "new /"}}, ""},
		{"a host without an Ingress", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C"}), "g/=new"),
			[]exchanged{{url: "http://g/", headers: header("X-C", "always"), status: 404}}, "no other Ingress"},
		{"paths without an Ingress", object("a/c", "nginx", canary(annotations{"canary-by-header": "X-C"}), "h/x=new", "h/y=new"),
			[]exchanged{{url: "http://h/x", headers: header("X-C", "always"), body: "main /x"}}, "no other Ingress"},
		{"a default backend", rest, []exchanged{{url: "http://g/", headers: header("X-C", "always"), status: 404}}, ""},
		{"a canary that is off is an Ingress", object("a/c", "nginx", annotations{"canary": "false"}, "h/new=new"), []exchanged{{url: "http://h/new", body: "new /new"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := cluster{ingresses: []*networkingv1.Ingress{c.canary, main}}.serve(t)
			for _, e := range c.requests {
				e.check(t, f)
			}
			if got := reasons(r); c.finding == "" && got != "" || !strings.Contains(got, c.finding) {
				t.Errorf("findings:\n%s", got)
			}
		})
	}
}

// TestCanaryWeightSplitsRequests wants at least a quarter of the requests at each of two backends; chance alone gives
// less once in 10^12 runs.
func TestCanaryWeightSplitsRequests(t *testing.T) {
	for _, c := range []struct {
		name         string
		main, canary annotations
	}{
		{"50 of 100", nil, annotations{"canary-weight": "50"}},
		{"100 of 200", nil, annotations{"canary-weight": "100", "canary-weight-total": "200"}},
		{"clients that have no cookie yet", annotations{"affinity": "cookie"}, annotations{"canary-weight": "50"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := cluster{ingresses: []*networkingv1.Ingress{
				object("a/main", "nginx", c.main, "h/=main"), object("a/c", "nginx", with(annotations{"canary": "true"}, c.canary), "h/=new"),
			}}.serve(t)
			seen, one := map[string]int{}, client(t, f.http, "http1")
			for range 200 {
				_, got := get(t, one, "http://h/")
				seen[got]++
			}
			testenv.False(t, seen["main /"] < 50 || seen["new /"] < 50 || len(seen) != 2, "the backends got %v", seen)
		})
	}
}
