// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// session is a client with its cookie.
type session struct {
	cookie string // NAME=VALUE; empty before the first response
}

// ask returns the name of the backend that serves the client at a proxy.
func (s *session) ask(t *testing.T, f *fixture, url string, headers ...string) string {
	t.Helper()
	req := testenv.Must(http.NewRequest(http.MethodGet, url, nil))(t)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	if s.cookie != "" {
		req.Header.Set("Cookie", s.cookie)
	}
	res := testenv.Must(client(t, f.http, "http1").Do(req))(t)
	if set := res.Header.Get("Set-Cookie"); set != "" {
		s.cookie, _, _ = strings.Cut(set, ";")
	}
	name, _, _ := strings.Cut(body(t, res), " ")
	return name
}

// scaled is a Service of several endpoints, at two proxies that share nothing but the table.
type scaled struct {
	proxies   [2]*fixture
	addresses []string // of the endpoints e0, e1, …
}

func newScaled(t *testing.T, a annotations) scaled {
	t.Helper()
	var s scaled
	ing := object("a/x", "nginx", with(annotations{"affinity": "cookie"}, a), "h/=w")
	ing.UID = types.UID(t.Name())
	for i := range s.proxies {
		s.proxies[i], _ = cluster{ingresses: []*networkingv1.Ingress{ing}}.serve(t)
	}
	for i := range 5 {
		s.addresses = append(s.addresses, backendServer(t, showing(fmt.Sprint("e", i))))
	}
	return s
}

// scale has the Service have some of the endpoints.
func (s scaled) scale(t *testing.T, endpoints ...int) {
	t.Helper()
	var all []string
	for _, i := range endpoints {
		all = append(all, s.addresses[i])
	}
	for _, f := range s.proxies {
		f.Apply([]table.Change{section(t, table.KindEndpoints+"/a/w/80", table.Endpoints{Addresses: all})})
	}
}

// ask sends a request of each client, to the proxies in turn, and returns who served each of them.
func (s scaled) ask(t *testing.T, clients []session) []string {
	t.Helper()
	var out []string
	for i := range clients {
		out = append(out, clients[i].ask(t, s.proxies[i%2], "http://h/"))
	}
	return out
}

func moved(before, after []string) (n int) {
	for i := range before {
		if before[i] != after[i] {
			n++
		}
	}
	return n
}

// TestAffinityModes scales a Service of three endpoints to five, as ingress-nginx documents its modes.
func TestAffinityModes(t *testing.T) {
	for name, c := range map[string]struct {
		a        annotations
		balanced bool
	}{
		"none":       {annotations{}, true},
		"balanced":   {annotations{"affinity-mode": "balanced"}, true},
		"persistent": {annotations{"affinity-mode": "persistent"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScaled(t, c.a)
			s.scale(t, 0, 1, 2)
			clients := make([]session, 60)
			first := s.ask(t, clients)
			testenv.Equal(t, moved(first, s.ask(t, clients)), 0, "without a change, moved sessions")
			slices.Reverse(s.proxies[:])
			testenv.Equal(t, moved(first, s.ask(t, clients)), 0, "at the other proxy, moved sessions")
			s.scale(t, 0, 1, 2, 3, 4)
			grown := s.ask(t, clients)
			testenv.True(t, (moved(first, grown) > 0) == c.balanced, "of 60 sessions %d moved with two new endpoints", moved(first, grown))
			s.scale(t, 1, 2, 3, 4)
			shrunk := s.ask(t, clients)
			for i := range clients {
				testenv.True(t, (grown[i] == shrunk[i]) == (grown[i] != "e0"), "when e0 went, a session went from %s to %s", grown[i], shrunk[i])
			}
			s.scale(t, 0, 1, 2, 3, 4)
			testenv.True(t, (moved(shrunk, s.ask(t, clients)) > 0) == c.balanced, "%d sessions moved when e0 came back", moved(shrunk, s.ask(t, clients)))
			others := make([]session, 60)
			testenv.True(t, slices.Contains(s.ask(t, others), "e3"), "no new session is at a new endpoint")
		})
	}
}

// TestSessionIsAtAnotherPodWhileItsOwnCannotBeReached and comes back to it.
func TestSessionIsAtAnotherPodWhileItsOwnCannotBeReached(t *testing.T) {
	s := newScaled(t, annotations{"affinity-mode": "persistent"})
	s.addresses[0] = closed(t)
	s.scale(t, 1)
	clients := make([]session, 1)
	testenv.Equal(t, s.ask(t, clients)[0], "e1", "the only endpoint is")
	s.scale(t, 0, 1)
	cookie := clients[0].cookie
	s.scale(t, 0)
	testenv.True(t, s.ask(t, clients)[0] != "e1" && clients[0].cookie == cookie, "an endpoint that cannot be reached began a session")
	s.scale(t, 0, 1)
	testenv.Equal(t, s.ask(t, clients)[0], "e1", "the session came back to")
}

// TestSessionCookiesCannotBeForged: a cookie names an endpoint of its route or none, and says nothing of addresses.
func TestSessionCookiesCannotBeForged(t *testing.T) {
	s := newScaled(t, annotations{"affinity-mode": "persistent", "session-cookie-name": "at"})
	s.scale(t, 0, 1, 2)
	other := newScaled(t, annotations{"affinity-mode": "persistent", "session-cookie-name": "at"})
	other.scale(t, 3)
	clients := make([]session, 30)
	served := s.ask(t, clients)
	tags := map[string]bool{}
	for i := range clients {
		testenv.True(t, len(clients[i].cookie) == len("at=")+26, "the cookie is %q", clients[i].cookie)
		tags[clients[i].cookie[len(clients[i].cookie)-13:]] = true
	}
	testenv.Equal(t, len(tags), 30, "cookies name their endpoints alike:")
	foreign := make([]session, 1)
	other.ask(t, foreign)
	for _, value := range []string{foreign[0].cookie, "at=" + strings.Repeat("A", 26), "at=" + s.addresses[3], "at=", "at=" + strings.Repeat("é", 13), "at=e3"} {
		one := []session{{cookie: value}}
		got := s.ask(t, one)[0]
		testenv.True(t, slices.Contains([]string{"e0", "e1", "e2"}, got), "with the cookie %q %s serves", value, got)
		testenv.True(t, one[0].cookie != value, "the cookie %q stays", value)
	}
	// The end of one cookie behind the beginning of another names nothing.
	for i := range clients {
		j := (i + 1) % len(clients)
		mixed := []session{{cookie: clients[i].cookie[:3+13] + clients[j].cookie[3+13:]}}
		s.ask(t, mixed)
		testenv.True(t, mixed[0].cookie != clients[i].cookie[:3+13]+clients[j].cookie[3+13:], "a cookie of two parts stays")
	}
	testenv.Equal(t, moved(served, s.ask(t, clients)), 0, "moved sessions")
}

// TestCanarySessions: by default a client of a canary stays there, and so does one of the other backend.
func TestCanarySessions(t *testing.T) {
	main := annotations{"affinity": "cookie"}
	for name, c := range map[string]struct {
		main, canary annotations
		sticky       bool
	}{
		"default":                   {main, annotations{}, true},
		"sticky":                    {main, annotations{"affinity-canary-behavior": "sticky"}, true},
		"sticky and persistent":     {with(main, annotations{"affinity-mode": "persistent"}), annotations{}, true},
		"legacy":                    {main, annotations{"affinity-canary-behavior": "legacy"}, false},
		"legacy at the other":       {with(main, annotations{"affinity-canary-behavior": "legacy"}), annotations{}, false},
		"legacy and persistent":     {with(main, annotations{"affinity-mode": "persistent"}), annotations{"affinity-canary-behavior": "legacy"}, false},
		"without affinity, default": {annotations{}, annotations{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := object("a/main", "nginx", c.main, "h/=main"), object("a/c", "nginx", with(annotations{"canary": "true", "canary-weight": "50",
				"canary-by-header": "X-C"}, c.canary), "h/=new")
			a.UID = types.UID(name)
			f, r := cluster{ingresses: []*networkingv1.Ingress{a, b}}.serve(t)
			testenv.Equal(t, reasons(r), "", "findings:")
			seen := map[string]int{}
			for range 30 {
				one := &session{}
				first := one.ask(t, f, "http://h/")
				seen[first]++
				for range 3 {
					if again := one.ask(t, f, "http://h/"); again != first {
						testenv.False(t, c.sticky, "a client of %s is served by %s", first, again)
						seen["moved"]++
					}
				}
			}
			testenv.True(t, seen["main"] > 0 && seen["new"] > 0, "the backends got %v", seen)
			testenv.True(t, c.sticky || seen["moved"] > 0, "no client moved: %v", seen)
			if !c.sticky {
				return
			}
			// As with ingress-nginx, a session is before the canary's header.
			one := &session{}
			testenv.Equal(t, one.ask(t, f, "http://h/", "X-C", "always"), "new", "with the header,")
			testenv.Equal(t, one.ask(t, f, "http://h/", "X-C", "never"), "new", "with a session of the canary,")
			one = &session{}
			testenv.Equal(t, one.ask(t, f, "http://h/", "X-C", "never"), "main", "with the header,")
			testenv.Equal(t, one.ask(t, f, "http://h/", "X-C", "always"), "main", "with a session of the other,")
			// A canary that is gone has no sessions, and another one does not get them.
			canary := &session{}
			testenv.Equal(t, canary.ask(t, f, "http://h/", "X-C", "always"), "new", "with the header,")
			cookie := canary.cookie
			cluster{ingresses: []*networkingv1.Ingress{a}}.change(t, f)
			testenv.Equal(t, canary.ask(t, f, "http://h/"), "main", "without the canary,")
			other := object("a/c", "nginx", annotations{"canary": "true", "canary-by-header": "X-C"}, "h/=newer")
			cluster{ingresses: []*networkingv1.Ingress{a, other}}.change(t, f)
			testenv.Equal(t, (&session{cookie: cookie}).ask(t, f, "http://h/"), "main", "with another canary,")
		})
	}
}

func TestBadAffinityModesCloseTheRoute(t *testing.T) {
	for name, value := range map[string]string{"affinity-mode": "forever", "affinity-canary-behavior": "sometimes"} {
		f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"affinity": "cookie", name: value}, "h/=w")}}.serve(t)
		exchanged{url: "http://h/", status: http.StatusServiceUnavailable}.check(t, f)
		testenv.Contains(t, reasons(r), name, "findings")
	}
}
