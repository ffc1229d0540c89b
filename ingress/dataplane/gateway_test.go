// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// hostWith serves routes at a final host of any name. Services without endpoints of their own are an echo that names
// them.
func hostWith(t testing.TB, routes ...table.Route) []table.Change {
	t.Helper()
	for i := range routes {
		if routes[i].Object == "" {
			routes[i].Object = "httproute/n/r"
		}
		if routes[i].Path == "" {
			routes[i].Path, routes[i].Kind = "/", table.PathPrefix
		}
	}
	return withEchoes(t, section(t, table.HostKey("s", ""), table.Host{Final: true, Routes: routes}))
}

// withEchoes adds endpoints to hosts: an echo that names its Service.
func withEchoes(t testing.TB, changes ...table.Change) []table.Change {
	t.Helper()
	sections := table.Sections{}
	for _, c := range changes {
		sections.Apply(c)
	}
	backends := testenv.Must(sections.Backends())(t)
	for key, b := range backends {
		if _, ok := sections[key]; !ok {
			changes = append(changes, section(t, key, table.Endpoints{Addresses: []string{backendServer(t, showing(b.Service))}}))
		}
	}
	return changes
}

func to(names ...string) []table.Backend {
	var out []table.Backend
	for _, name := range names {
		b := service(name)
		b.Weight = 1
		out = append(out, b)
	}
	return out
}

func TestConditionsChooseRoutes(t *testing.T) {
	f := newFixture(t, Options{}, hostWith(t,
		table.Route{Method: "POST", Backends: to("post")},
		table.Route{Headers: []table.Condition{{Name: "version", Value: "two"}, {Name: "Color", Value: "orange"}}, Backends: to("both")},
		table.Route{Headers: []table.Condition{{Name: "version", Value: "two"}}, Backends: to("two")},
		table.Route{Headers: []table.Condition{{Name: "Tag", Value: "v[0-9]+", Regex: true}}, Backends: to("tagged")},
		table.Route{Headers: []table.Condition{{Name: "List", Value: "a,b"}}, Backends: to("list")},
		table.Route{Query: []table.Condition{{Name: "animal", Value: "blue whale"}}, Backends: to("whale")},
		table.Route{Query: []table.Condition{{Name: "n", Value: "[0-9]+", Regex: true}}, Backends: to("number")},
		table.Route{Path: "/p", Kind: table.PathExact, Method: "PUT", Headers: []table.Condition{{Name: "A", Value: "1"}},
			Query: []table.Condition{{Name: "b", Value: "2"}}, Backends: to("all")},
	)...)
	for _, e := range []exchanged{
		{url: "http://a/", method: "POST", body: "post /"},
		{url: "http://a/", headers: map[string]string{"Version": "two", "Color": "orange"}, body: "both /"},
		{url: "http://a/", headers: map[string]string{"Version": "two", "Color": "blue"}, body: "two /"},
		{url: "http://a/", headers: map[string]string{"Version": "Two"}, status: 404},
		{url: "http://a/", headers: map[string]string{"Tag": "v12"}, body: "tagged /"},
		{url: "http://a/", headers: map[string]string{"Tag": "v12b"}, status: 404},
		{url: "http://a/?animal=blue%20whale", body: "whale /?animal=blue%20whale"},
		{url: "http://a/?x=1&animal=blue+whale", body: "whale /?x=1&animal=blue+whale"},
		{url: "http://a/?ANIMAL=blue+whale", status: 404},
		{url: "http://a/?animal=cat&animal=blue+whale", status: 404},
		{url: "http://a/?n=12", body: "number /?n=12"},
		{url: "http://a/?n=12x", status: 404},
		{url: "http://a/?n", status: 404},
		{url: "http://a/p?b=2", method: "PUT", headers: map[string]string{"A": "1"}, body: "all /p?b=2"},
		{url: "http://a/p?b=3", method: "PUT", headers: map[string]string{"A": "1"}, status: 404},
		{url: "http://a/p?b=2", headers: map[string]string{"A": "1"}, status: 404},
	} {
		e.check(t, f)
	}
	req, _ := http.NewRequest(http.MethodGet, "http://a/", nil)
	req.Header["List"] = []string{"a", "b"}
	res := testenv.Must(client(t, f.http, "http1").Do(req))(t)
	testenv.Equal(t, body(t, res), "list /", "a header that is sent twice leads to")
}

func TestHostsOfAnyDepth(t *testing.T) {
	host := func(name string, deep, final bool) table.Change {
		return section(t, table.HostKey("s", name), table.Host{AnyDepth: deep, Final: final, Routes: []table.Route{
			{Path: "/only", Kind: table.PathExact, Object: "httproute/n/r", Backends: to("host" + name)},
		}})
	}
	f := newFixture(t, Options{}, withEchoes(t, host("*.a.example", true, true), host("*.b.example", false, false), host("x.b.example", false, true),
		section(t, table.HostKey("s", ""), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix, Object: "httproute/n/r", Backends: to("rest")}}}))...)
	for _, e := range []exchanged{
		{url: "http://1.a.example/only", body: "host*.a.example /only"},
		{url: "http://2.1.a.example/only", body: "host*.a.example /only"},
		{url: "http://3.2.1.a.example/other", status: 404},
		{url: "http://a.example/only", body: "rest /only"},
		{url: "http://1.b.example/only", body: "host*.b.example /only"},
		{url: "http://1.b.example/other", body: "rest /other"},
		{url: "http://2.1.b.example/only", body: "rest /only"},
		{url: "http://x.b.example/other", status: 404},
	} {
		e.check(t, f)
	}
}

func TestPathsAndHeadersChangeOnTheWay(t *testing.T) {
	prefix := func(path, value string) table.Route {
		return table.Route{Path: path, Kind: table.PathPrefix, Backends: to("b"), Policy: &table.Policy{Path: &table.PathChange{Prefix: true, Value: value}}}
	}
	second := service("c")
	second.RequestHeaders = &table.Headers{Set: []table.Header{{Name: "host", Value: "c.internal"}, {Name: "set", Value: "c"}}}
	second.ResponseHeaders = &table.Headers{Add: []table.Header{{Name: "X-Backend", Value: "c"}}, Remove: []string{"content-type"}}
	f := newFixture(t, Options{}, hostWith(t,
		prefix("/foo", "/xyz"), prefix("/slash/", "/xyz/"), prefix("/none", ""), prefix("/root", "/"), prefix("/%C3%A9;x", "/e"), prefix("/a%2Fb", "/c"),
		table.Route{Path: "/full", Kind: table.PathPrefix, Backends: to("b"), Policy: &table.Policy{Path: &table.PathChange{Value: "/all"}}},
		table.Route{Path: "/headers", Kind: table.PathPrefix, Backends: []table.Backend{second}, Policy: &table.Policy{
			UpstreamHost: "other.internal",
			RequestHeaders: &table.Headers{
				Set: []table.Header{{Name: "set", Value: "new"}}, Add: []table.Header{{Name: "add", Value: "more"}, {Name: "fresh", Value: "1"}}, Remove: []string{"REMOVE"},
			},
			ResponseHeaders: &table.Headers{Set: []table.Header{{Name: "x-route", Value: "set"}}, Add: []table.Header{{Name: "x-backend", Value: "route"}}},
		}},
	)...)
	for _, e := range []exchanged{
		{url: "http://a/foo/bar?q=1", body: "b /xyz/bar?q=1"},
		{url: "http://a/foo", body: "b /xyz"},
		{url: "http://a/foo/", body: "b /xyz/"},
		{url: "http://a/slash/bar", body: "b /xyz/bar"},
		{url: "http://a/slash", body: "b /xyz"},
		{url: "http://a/none/bar", body: "b /bar"},
		{url: "http://a/none/", body: "b /"},
		{url: "http://a/none", body: "b /"},
		{url: "http://a/root/bar", body: "b /bar"},
		{url: "http://a/root/", body: "b /"},
		{url: "http://a/root", body: "b /"},
		{url: "http://a/%c3%a9%3bx/%C3%A9%2Fy", body: "b /e/%C3%A9%2Fy"},
		{url: "http://a/a%2fb/c", body: "b /c/c"},
		{url: "http://a/full/x?q=1", body: "b /all?q=1"},
		{
			url:     "http://a/headers",
			headers: map[string]string{"Set": "old", "Add": "first", "Remove": "x", "X-Show": "Host,Set,Remove,Fresh"},
			body:    "c /headers Host=c.internal Set=c Fresh=1",
			answer:  map[string]string{"Content-Type": "", "X-Route": "set", "X-Backend": "route"},
		},
	} {
		res := e.check(t, f)
		if e.headers != nil {
			testenv.Equal(t, fmt.Sprint(res.Header["X-Backend"]), "[route c]", "the header that both add is")
		}
	}
}

func TestHeadersOfTheConnectionStay(t *testing.T) {
	for _, change := range []table.Headers{
		{Set: []table.Header{{Name: "Transfer-Encoding", Value: "chunked"}}},
		{Set: []table.Header{{Name: "X", Value: "a\r\nB: c"}}},
		{Set: []table.Header{{Name: "Host", Value: "a b"}}},
		{Add: []table.Header{{Name: "upgrade", Value: "h2c"}}},
		{Remove: []string{"host"}},
		{Remove: []string{"content-length"}},
		{Remove: []string{"a b"}},
	} {
		p := mustNew(t)
		problems := p.Apply([]table.Change{section(t, table.HostKey("s", ""), table.Host{Routes: []table.Route{{
			Path: "/", Kind: table.PathPrefix, Backends: to("b"), Policy: &table.Policy{RequestHeaders: &change},
		}}})})
		if r := routeOf(p, "s", "a", "/"); len(problems) != 1 || r.refused == "" {
			t.Errorf("%+v: problems %v, the route is closed because of %q", change, problems, r.refused)
		}
	}
}

func TestRedirectsReplaceParts(t *testing.T) {
	redirect := func(path string, r table.Redirect) table.Route {
		if r.Status == 0 {
			r.Status = 302
		}
		return table.Route{Path: path, Kind: table.PathPrefix, Policy: &table.Policy{Redirect: &r}}
	}
	f := newFixture(t, Options{}, hostWith(t,
		redirect("/host", table.Redirect{Host: "example.org", Status: 301}),
		redirect("/https", table.Redirect{Scheme: "https"}),
		redirect("/https443", table.Redirect{Scheme: "https", Port: 443}),
		redirect("/https8443", table.Redirect{Scheme: "https", Port: 8443}),
		redirect("/port80", table.Redirect{Port: 80}),
		redirect("/port443", table.Redirect{Port: 443}),
		redirect("/port8080", table.Redirect{Port: 8080}),
		redirect("/http80", table.Redirect{Scheme: "http", Port: 80}),
		redirect("/full", table.Redirect{Path: &table.PathChange{Value: "/replacement"}, Status: 303}),
		redirect("/prefix", table.Redirect{Path: &table.PathChange{Prefix: true, Value: "/replacement/"}, Status: 308}),
	)...)
	for _, c := range []struct {
		url, want string
		status    int
	}{
		{"http://a:81/host/x?q=1", "http://example.org/host/x?q=1", 301},
		{"http://a:81/https", "https://a/https", 302},
		{"https://a/https", "https://a/https", 302},
		{"http://a/https443", "https://a/https443", 302},
		{"http://a/https8443", "https://a:8443/https8443", 302},
		{"http://a/port80", "http://a/port80", 302},
		{"https://a/port80", "https://a:80/port80", 302},
		{"http://a/port443", "http://a:443/port443", 302},
		{"https://a/port443", "https://a/port443", 302},
		{"http://a/port8080", "http://a:8080/port8080", 302},
		{"https://a/http80", "http://a/http80", 302},
		{"http://a/full/x?q=1", "http://a/replacement?q=1", 303},
		{"http://a/prefix/x/?q=1", "http://a/replacement/x/?q=1", 308},
		{"http://a/prefix", "http://a/replacement", 308},
	} {
		exchanged{url: c.url, status: c.status, answer: map[string]string{"Location": c.want}}.check(t, f)
	}
}

func TestExpressionsHaveNoPrefix(t *testing.T) {
	p := mustNew(t)
	problems := p.Apply([]table.Change{section(t, table.HostKey("s", ""), table.Host{Routes: []table.Route{{
		Path: "/a+", Kind: table.PathRegex, Backends: to("b"), Policy: &table.Policy{Path: &table.PathChange{Prefix: true, Value: "/x"}},
	}}})})
	if r := routeOf(p, "s", "a", "/aa"); len(problems) != 1 || r == nil || r.refused == "" {
		t.Errorf("an expression whose prefix is replaced is served: %v", problems)
	}
}

func TestInvalidBackendsFailTheirShare(t *testing.T) {
	bad := table.Backend{Weight: 3, Invalid: "there is no such Service"}
	f := newFixture(t, Options{}, hostWith(t,
		table.Route{Path: "/some", Kind: table.PathPrefix, Backends: append(to("b"), bad)},
		table.Route{Path: "/none", Kind: table.PathPrefix, Backends: []table.Backend{bad}},
	)...)
	exchanged{url: "http://a/none", status: 500}.check(t, f)
	c := client(t, f.http, "http1")
	count := map[int]int{}
	for range 100 {
		status, _ := get(t, c, "http://a/some")
		count[status]++
	}
	if count[200] < 23 || count[200] > 27 || count[200]+count[500] != 100 {
		t.Errorf("of 100 requests a backend with a quarter of the weight answers %v", count)
	}
}
