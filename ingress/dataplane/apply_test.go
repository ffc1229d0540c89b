// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func mustNew(t testing.TB) *Proxy {
	t.Helper()
	return testenv.Must(New(Options{Logger: quiet()}))(t)
}

// routed is the host of a table with one route to a backend of that name for each path; a path that ends with "$" is
// exact.
func routed(name string, paths ...string) table.Host {
	var h table.Host
	for _, p := range paths {
		kind := table.PathPrefix
		if exact, ok := strings.CutSuffix(p, "$"); ok {
			p, kind = exact, table.PathExact
		}
		h.Routes = append(h.Routes, table.Route{Path: p, Kind: kind, Object: name + " " + p, Backends: []table.Backend{service(name + p)}})
	}
	return h
}

func TestHostsAndPathsSelectRoutes(t *testing.T) {
	p := mustNew(t)
	p.Apply([]table.Change{
		section(t, table.HostKey("s", "example.org"), routed("exact", "/a/b", "/a", "/x/$", "/f%C3%B6")),
		section(t, table.HostKey("s", "*.example.org"), routed("wild", "/")),
		section(t, table.HostKey("s", ""), routed("default", "/d")),
		section(t, table.HostKey("other", "example.org"), routed("other", "/")),
	})
	for _, c := range []struct{ host, path, want string }{
		{"example.org", "/a", "exact/a"},
		{"example.org", "/a/", "exact/a"},
		{"example.org", "/a/b/c", "exact/a/b"},
		{"example.org", "/ab", ""},
		{"example.org", "/A", ""},
		{"example.org", "/x/", "exact/x/"},
		{"example.org", "/x", ""},
		{"example.org", "/föö", ""},
		{"example.org", "/fö", "exact/f%C3%B6"},
		{"example.org", "/d/e", "default/d"},
		{"a.example.org", "/a", "wild/"},
		{"a.b.example.org", "/a", ""},
		{"a.b.example.org", "/d", "default/d"},
		{"", "/d", "default/d"},
		{"org", "/d", "default/d"},
	} {
		got := ""
		if r := routeOf(p, "s", c.host, c.path); r != nil {
			for key, set := range p.objects.endpoints {
				if set == r.backends[0].endpoints {
					got = strings.TrimSuffix(strings.TrimPrefix(key, "endpoints/n/"), "/80")
				}
			}
		}
		testenv.Equal(t, got, c.want, "%s%s goes to", c.host, c.path)
	}
}

func TestTurnsFollowWeights(t *testing.T) {
	r := &pool{backends: []backend{{weight: 90}, {weight: 0}, {weight: 10}}, total: 100}
	count := map[*backend]int{}
	for range 1000 {
		count[r.choose()]++
	}
	if n := count[&r.backends[2]]; n < 98 || n > 102 || count[&r.backends[1]] != 0 {
		t.Errorf("of 1000 requests the weights 90, 0, 10 gave %d, %d, %d", count[&r.backends[0]], count[&r.backends[1]], n)
	}
	single := &pool{backends: []backend{{}}}
	testenv.True(t, single.choose() != nil, "a single backend without a weight gets nothing")
	none := &pool{backends: []backend{{}, {}}}
	testenv.True(t, none.choose() == nil, "backends of weight 0 get requests")
}

func TestChangeOfEndpointsKeepsRoutes(t *testing.T) {
	p := mustNew(t)
	p.Apply([]table.Change{
		section(t, table.HostKey("s", "a"), routed("b", "/")),
		section(t, service("b/").Key(), table.Endpoints{Addresses: []string{"10.0.0.1:80", "10.0.0.2:80"}}),
	})
	r := routeOf(p, "s", "a", "/")
	kept := r.backends[0].endpoints.endpoints()[1]
	p.Apply([]table.Change{section(t, service("b/").Key(), table.Endpoints{Addresses: []string{"10.0.0.2:80", "10.0.0.3:80"}})})
	testenv.Equal(t, routeOf(p, "s", "a", "/"), r, "the route was built again:")
	if list := r.backends[0].endpoints.endpoints(); len(list) != 2 || list[0] != kept || list[1].address != "10.0.0.3:80" {
		t.Errorf("the endpoints are %v", list)
	}
	p.Apply([]table.Change{{Key: table.HostKey("s", "a")}, {Key: service("b/").Key()}})
	if len(p.objects.endpoints) != 0 || len(p.current.Load().sites) != 0 {
		t.Errorf("after all is gone %d sets and %d sites are left", len(p.objects.endpoints), len(p.current.Load().sites))
	}
}

func TestBadTableSectionsAreReported(t *testing.T) {
	p := mustNew(t)
	cert := table.CertificateKey("n", "c")
	odd := routed("b", "/")
	odd.Routes[0].Kind = "Glob"
	wants := map[string]string{
		cert:                        "cannot be used",
		table.HostKey("s", "cert"):  "default certificate",
		table.HostKey("s", "odd"):   `kind "Glob"`,
		table.HostKey("s", "newer"): "reading the host",
		table.HostKey("s", "text"):  "reading the host",
		service("b/").Key():         "may not lead to the address 127.0.0.1:80",
		table.KindSettings:          "trusted proxies",
		"weather/today":             "no section of the kind",
		table.KindHost + "/nothing": "not the key of a host",
	}
	problems := p.Apply([]table.Change{
		section(t, cert, table.Certificate{Chain: "x", Key: "y"}),
		section(t, table.HostKey("s", "cert"), table.Host{Certificate: cert}),
		section(t, table.HostKey("s", "odd"), odd),
		section(t, table.HostKey("s", "newer"), map[string]any{"routes": []any{}, "fingerprints": []string{"a"}}), // a later version's restriction
		section(t, table.HostKey("s", "text"), "text"),
		section(t, service("b/").Key(), table.Endpoints{Addresses: []string{"127.0.0.1:80", "10.0.0.1:80"}}),
		section(t, table.KindSettings, table.Settings{TrustedProxies: []string{"10.0.0.0/8", "ten"}}),
		section(t, "weather/today", 1),
		section(t, table.KindHost+"/nothing", 1),
	})
	for key, want := range wants {
		testenv.True(t, strings.Contains(problems[key], want), "the problem of %s is %q, want %q in it", key, problems[key], want)
	}
	testenv.True(t, len(problems) == len(wants), "%d problems, want %d: %v", len(problems), len(wants), problems)
	for _, name := range []string{"odd", "newer", "text"} {
		if r := routeOf(p, "s", name, "/x"); r == nil || r.refused == "" {
			t.Errorf("the host %s is not closed", name)
		}
	}
	if list := p.objects.endpoints[service("b/").Key()].endpoints(); len(list) != 1 {
		t.Errorf("%d endpoints, want the one that may be dialled", len(list))
	}
	testenv.Equal(t, len(p.current.Load().trusted), 1, "the good network of trusted proxies is lost:")
	problems = p.Replace(table.Sections{})
	if len(problems) != 0 || len(p.objects.endpoints) != 0 || len(p.objects.certificates) != 1 { // the default one
		t.Errorf("an empty table leaves %v, %d sets, %d certificates", problems, len(p.objects.endpoints), len(p.objects.certificates))
	}
}

// FuzzApply: no sequence of changes panics, and what is routed afterwards is what the same sections give at once.
func FuzzApply(f *testing.F) {
	f.Add([]byte("host/s/a\x00" + `{"routes":[{"path":"/","kind":"Prefix","backends":[{"service":"b"}]}]}` + "\x00host/s/a\x00null"))
	f.Add([]byte("endpoints/a/b/c\x00{\"addresses\":[\"10.0.0.1:1\",\"x\"]}\x00certificate/a/b\x00{\"chain\":\"x\"}"))
	f.Add([]byte("settings\x00{\"trustedProxies\":[\"::/0\"]}\x00settings\x00null"))
	f.Add([]byte("host//\x00{\"routes\":[{\"path\":\"x\"}],\"certificate\":\"c\"}\x00host//\x00\x00host/\x00[]"))
	f.Fuzz(func(t *testing.T, script []byte) {
		p := mustNew(t)
		parts := strings.Split(string(script), "\x00")
		var problems map[string]string
		for i := 0; i+1 < len(parts); i += 2 {
			problems = p.Apply([]table.Change{{Key: parts[i], Value: []byte(parts[i+1])}})
		}
		whole := mustNew(t)
		if again := whole.Replace(p.sections); len(parts) > 1 && fmt.Sprint(again) != fmt.Sprint(problems) {
			t.Fatalf("problems step by step %v, at once %v", problems, again)
		}
		for siteName, hosts := range p.current.Load().sites {
			for name := range hosts.hosts {
				one, other := routeOf(p, siteName, name, "/a/b"), routeOf(whole, siteName, name, "/a/b")
				if (one == nil) != (other == nil) || one != nil && (one.path != other.path || one.refused != other.refused) {
					t.Fatalf("the host %q of %q routes differently", name, siteName)
				}
			}
		}
	})
}

// large is a table of 1,000 hosts with 3,000 routes.
func large(t testing.TB) table.Sections {
	s := table.Sections{}
	for i := range 1000 {
		h := table.Host{}
		for j := range 3 {
			b := service(fmt.Sprintf("service-%d-%d", i, j))
			h.Routes = append(h.Routes, table.Route{
				Path: fmt.Sprintf("/path-%d", j), Kind: table.PathPrefix, Object: "Ingress/namespace/name", Backends: []table.Backend{b},
			})
			testenv.NoError(t, s.Put(b.Key(), table.Endpoints{Addresses: []string{"10.42.0.1:8080", "10.42.1.1:8080"}}))
		}
		testenv.NoError(t, s.Put(table.HostKey("s", fmt.Sprintf("host-%d.example.org", i)), h))
	}
	return s
}

// BenchmarkTable builds the table of 3,000 routes, and changes one host and one set of endpoints of it.
func BenchmarkTable(b *testing.B) {
	sections := large(b)
	b.Run("3000routes", func(b *testing.B) {
		cpu := cpuTime(b)
		for b.Loop() {
			b.StopTimer()
			cpu.pause()
			p := mustNew(b)
			cpu.resume()
			b.StartTimer()
			p.Replace(sections)
		}
		cpu.report(b)
	})
	p := mustNew(b)
	p.Replace(sections)
	for name, key := range map[string]string{"host": table.HostKey("s", "host-5.example.org"), "endpoints": service("service-5-0").Key()} {
		b.Run("change/"+name, func(b *testing.B) {
			change := []table.Change{{Key: key, Value: sections[key]}}
			cpu := cpuTime(b)
			for b.Loop() {
				p.Apply(change)
			}
			cpu.report(b)
		})
	}
}
