// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// costly is an expression of almost the greatest size, of which there is one for each number.
func costly(n int) string { return fmt.Sprintf("CN=(%015d){60}(yyyyyyyyyyyyyy){50}", n) }

// writers are the ways in which a namespace has expressions, each as Ingresses of the namespace bad. expression returns
// another expression for each number.
var writers = map[string]func(n int, expression string) []*networkingv1.Ingress{
	"paths": func(n int, expression string) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{object(fmt.Sprintf("bad/x%d", n), "nginx", annotations{"use-regex": "true"}, "bad.example~/"+expression+"=w")}
	},
	"paths because of another's": func(n int, expression string) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{
			object(fmt.Sprintf("bad/x%d", n), "nginx", annotations{"use-regex": "true"}, "bad.example/=w"),
			object(fmt.Sprintf("bad/y%d", n), "nginx", nil, "bad.example/"+expression+"=w"),
		}
	},
	"auth-tls-match-cn": func(n int, expression string) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{object(fmt.Sprintf("bad/x%d", n), "coracle", annotations{"auth-tls-secret": "bad/ca", "auth-tls-match-cn": expression})}
	},
	"canary-by-header-pattern": func(n int, expression string) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{
			object(fmt.Sprintf("bad/x%d", n), "coracle", nil),
			object(fmt.Sprintf("bad/y%d", n), "coracle", annotations{"canary": "true", "canary-by-header": "X", "canary-by-header-pattern": expression}),
		}
	},
}

// TestAnnotationsWithExpressionsAreKnown: whatever annotation makes the proxy compile its value is one of those whose
// expressions are charged, and TestExpressionsOfOneNamespaceAreBounded knows each.
func TestAnnotationsWithExpressionsAreKnown(t *testing.T) {
	found := map[string]bool{}
	for _, a := range compile.Annotations {
		for _, value := range []string{"CN=a.*b", "a.*b", "/a.*b", "http://a.*b/"} {
			set := func(all annotations) annotations { return with(all, annotations{a.Name: value}) }
			c := cluster{endpoints: map[string]string{"a/w": "none"}, ingresses: []*networkingv1.Ingress{
				object("a/x", "nginx", set(annotations{"auth-tls-secret": "a/ca", "auth-type": "basic", "auth-secret": "a/users"}), "h/=w"),
				object("a/y", "nginx", nil, "g/=w"), object("a/z", "nginx", set(annotations{"canary": "true", "canary-by-header": "X"}), "g/=w"),
			}}
			p := newProxy(t, Options{})
			changes, _ := c.changes(t)
			p.Apply(changes)
			for key := range p.objects.patterns {
				found[a.Name] = found[a.Name] || key.text == value
			}
		}
	}
	delete(found, "rewrite-target") // it makes expressions of paths
	for name, is := range found {
		testenv.True(t, !is || slices.Contains(compile.Expressions, name), "the value of %s is compiled, and not charged", name)
	}
	for _, name := range compile.Expressions {
		testenv.True(t, found[name] && writers[name] != nil, "%s is not compiled, or not tried", name)
	}
}

// heap is the memory of what lives.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc) //nolint:gosec // G115: a test's memory
}

// TestExpressionsOfOneNamespaceAreBounded: whatever annotation it writes expressions with, one for 3,000 paths or
// another for each of 3,000, a namespace takes no more memory of a proxy than it may have, and another one is served.
func TestExpressionsOfOneNamespaceAreBounded(t *testing.T) {
	for name, write := range writers {
		for _, each := range []int{1, 3000} {
			t.Run(fmt.Sprintf("%s of %d", name, each), func(t *testing.T) {
				c := cluster{ingresses: []*networkingv1.Ingress{object("good/x", "coracle", nil, "good.example/=w")}}
				for n := range each {
					for _, i := range write(n, costly(n)) {
						for p := range 3000 / each {
							i.Spec.Rules = append(i.Spec.Rules, object("", "", nil, fmt.Sprintf("bad.example=/p%d-%d=w", n, p)).Spec.Rules...)
						}
						c.ingresses = append(c.ingresses, i)
					}
				}
				changes, _ := c.changes(t)
				before := heap()
				f := newFixture(t, Options{}, changes...)
				took := heap() - before
				t.Logf("%d MB", took>>20)
				testenv.True(t, took < 48<<20, "the proxy took %d MB", took>>20)
				exchanged{url: "http://good.example/", body: "w /"}.check(t, f)
			})
		}
	}
}

// firefox is a header by which browsers differ from curl: it is longer than others'.
var firefox = map[string]string{"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}

// numbered makes rules with n paths.
func numbered(n int, rule string) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(rule, i))
	}
	return out
}

// TestCostlyRoutesRefuseNoOthersRequests: routes of the default host whose expressions take long are one namespace's;
// requests for another's host are served.
func TestCostlyRoutesRefuseNoOthersRequests(t *testing.T) {
	long := "/" + strings.Repeat("a", 4<<10)
	for name, c := range map[string]struct {
		bad   []*networkingv1.Ingress
		rules compile.Rules
	}{
		"a canary's pattern": {bad: []*networkingv1.Ingress{
			object("bad/x", "coracle", nil, numbered(120, "=/zz%d=w")...),
			object("bad/y", "coracle", annotations{"canary": "true", "canary-by-header": "X", "canary-by-header-pattern": costly(0)}, numbered(120, "=/zz%d=w")...),
		}},
		"paths": {bad: []*networkingv1.Ingress{object("bad/x", "nginx", annotations{"use-regex": "true"}, numbered(45, "~/zz%d(xxxxxxxxxxxxxxx){60}(yyyyyyyyyyyyyy){50}.*=w")...)}},
		"paths, while hosts have owners": {
			bad:   []*networkingv1.Ingress{object("bad/x", "nginx", annotations{"use-regex": "true"}, numbered(45, "~/zz%d(xxxxxxxxxxxxxxx){60}(yyyyyyyyyyyyyy){50}.*=w")...)},
			rules: compile.Rules{HostOwner: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := cluster{rules: c.rules, ingresses: append(c.bad, object("good/x", "coracle", nil, "a.example/=good", "b.example=/only=good"))}.serve(t)
			exchanged{url: "http://a.example/", headers: firefox, body: "good /"}.check(t, f)
			exchanged{url: "http://a.example" + long, headers: firefox, body: "good " + long}.check(t, f)
			exchanged{url: "http://b.example/only", headers: firefox, body: "good /only"}.check(t, f)
			if c.rules.HostOwner {
				exchanged{url: "http://b.example" + long, status: 404}.check(t, f)
			}
		})
	}
}

// TestCostlyRouteIsRefusedAndNotPassedBy: a request that a route may match, and that takes too long to be compared with
// it, does not reach the next route, which may restrict less. Routes before it serve their requests, and a request that
// another condition keeps from the route goes on.
func TestCostlyRouteIsRefusedAndNotPassedBy(t *testing.T) {
	pattern := fmt.Sprintf("(%sx)", strings.Repeat("(.*a){40}|", 4))
	route := func(r table.Route) table.Route {
		r.Object = "Ingress/n/" + r.Path
		r.Backends = []table.Backend{service("b")}
		return r
	}
	x := table.Condition{Name: "X", Value: pattern, Regex: true}
	f := newFixture(t, Options{}, append(site(t, "", backendServer(t, showing("b"))), section(t, table.HostKey("s", "h"), table.Host{Routes: []table.Route{
		route(table.Route{Path: "/first", Kind: table.PathPrefix}),
		route(table.Route{Path: "/(" + strings.Repeat("(.*a){40}|", 4) + "x)", Kind: table.PathRegex, Method: "POST"}),
		route(table.Route{Path: "/headers", Kind: table.PathPrefix, Headers: []table.Condition{x, {Name: "Y", Value: "1"}}}),
		route(table.Route{Path: "/query", Kind: table.PathPrefix, Query: []table.Condition{{Name: "x", Value: pattern, Regex: true}}}),
		route(table.Route{Path: "/", Kind: table.PathPrefix}),
	}}))...)
	long := strings.Repeat("a", 16<<10)
	for _, e := range []exchanged{
		{url: "http://h/first" + "/" + long, method: "POST"}, {url: "http://h/" + long, method: "POST", status: 503}, {url: "http://h/" + long},
		{url: "http://h/headers", headers: map[string]string{"X": long, "Y": "1"}, status: 503}, {url: "http://h/headers", headers: map[string]string{"X": long}},
		{url: "http://h/headers", headers: map[string]string{"X": "x", "Y": "1"}}, {url: "http://h/other", headers: map[string]string{"X": long, "Y": "1"}},
		{url: "http://h/query?x=" + long, status: 503}, {url: "http://h/query?y=" + long},
	} {
		e.check(t, f)
	}
}

// TestCanaryWithCostlyPatternGetsNoRequests: a header that is too long for the pattern is for the main backend, and so
// is every request of a canary whose pattern does not fit into its namespace's part.
func TestCanaryWithCostlyPatternGetsNoRequests(t *testing.T) {
	canary := func(name, pattern string, rules ...string) *networkingv1.Ingress {
		return object(name, "coracle", annotations{"canary": "true", "canary-by-header": "X", "canary-by-header-pattern": pattern, "canary-weight": "100"}, rules...)
	}
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/x", "coracle", nil, "h/=main"), canary("a/y", "^a|"+strings.Repeat("(.*a){40}|", 4)+"x", "h/=canary"),
	}}.serve(t)
	exchanged{url: "http://h/", headers: map[string]string{"X": "a"}, body: "canary /"}.check(t, f)
	exchanged{url: "http://h/", headers: map[string]string{"X": strings.Repeat("a", 16<<10)}, body: "main /"}.check(t, f)
	var all []*networkingv1.Ingress
	for n := range 400 {
		all = append(all, object(fmt.Sprintf("a/x%03d", n), "coracle", nil, fmt.Sprintf("h%d/=main", n)), canary(fmt.Sprintf("a/y%03d", n), costly(n), fmt.Sprintf("h%d/=canary", n)))
	}
	f, r := cluster{ingresses: all}.serve(t)
	testenv.Contains(t, reasons(r), compile.ReasonTooLarge, "the findings are")
	exchanged{url: "http://h0/", body: "canary /"}.check(t, f)
	exchanged{url: "http://h399/", body: "main /"}.check(t, f)
}

// TestCostlyRequestsOfOneTenantDelayNoOther: of a flood of requests whose comparing takes long one at a time of each
// tenant is compared, or waits for a processor. Where tenants share a host, one of each client is.
func TestCostlyRequestsOfOneTenantDelayNoOther(t *testing.T) {
	regex := annotations{"use-regex": "true"}
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{
			object("bad/x", "nginx", regex, "bad~/([ab]*a){140}x=w", "shared~/([ab]*a){140}x=w"), object("good/x", "nginx", regex, "good~/([ab]*b){140}x|/=w", "shared~/=w"),
		},
		settings: table.Settings{TrustedProxies: []string{"127.0.0.0/8"}},
	}.serve(t)
	path := "/" + strings.Repeat("a", 1000)
	for _, c := range []struct {
		key, flooded, other string
		client              map[string]string // of the other's request
	}{
		{"bad", "http://bad", "http://good", nil}, {"client 127.0.0.1", "http://shared", "http://shared", from("192.0.2.1")},
	} {
		place, leave := f.comparisons.join(c.key)
		place <- struct{}{} // one of the flood is being compared
		const flood = 20
		done := make(chan struct{}, flood)
		for range flood {
			go func() {
				defer func() { done <- struct{}{} }()
				statusOf(t, f, exchanged{url: c.flooded + path})
			}()
		}
		waitUntil(t, "the flood waits", func() bool {
			f.comparisons.mu.Lock()
			defer f.comparisons.mu.Unlock()
			return f.comparisons.byKey[c.key].users == flood+1
		})
		exchanged{url: c.other + path, headers: c.client, body: "w " + path}.check(t, f)
		testenv.Equal(t, len(done), 0, "answered while one of the flood was being compared:")
		<-place
		leave()
		for range flood {
			<-done
		}
		testenv.Equal(t, len(f.comparisons.byKey), 0, "turns that are left over:")
	}
}

// TestWaitForTurnEnds: a request for which no turn comes is refused, and does not go to another route.
func TestWaitForTurnEnds(t *testing.T) {
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/x", "nginx", annotations{"use-regex": "true"}, "h~/([ab]*a){140}x=w", "h~/=w"),
	}}.serve(t)
	f.comparisons.wait = time.Millisecond
	place, leave := f.comparisons.join("a")
	place <- struct{}{}
	path := "/" + strings.Repeat("a", 1000)
	exchanged{url: "http://h" + path, status: 503}.check(t, f)
	<-place
	leave()
	f.comparisons.wait = patience
	exchanged{url: "http://h" + path}.check(t, f)
	testenv.Equal(t, len(f.comparisons.processors), 0, "places that are left over:")
}
