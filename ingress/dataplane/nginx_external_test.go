// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// authServer answers by the header X-Want, and says in headers what it was asked.
func authServer(t *testing.T, asked *atomic.Int64) string {
	return backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		h := w.Header()
		h.Set("X-User", "me")
		h.Set("Authorization", "issued")
		h.Set("X-Seen", fmt.Sprintf("%s %s %s %s %s %s", r.Method, r.RequestURI, r.Header.Get("X-Original-Method"), r.Header.Get("X-Original-URL"),
			r.Header.Get("X-Auth-Request-Redirect"), r.Header.Get("Cookie")))
		h.Set("Set-Cookie", "session=1")
		switch r.Header.Get("X-Want") {
		case "401":
			h.Set("WWW-Authenticate", "Custom x")
			w.WriteHeader(http.StatusUnauthorized)
		case "403":
			w.WriteHeader(http.StatusForbidden)
		case "302":
			h.Set("Location", "http://"+r.Host+"/elsewhere")
			w.WriteHeader(http.StatusFound)
		case "500":
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
}

func want(status string) map[string]string { return map[string]string{"X-Want": status} }

func TestExternalAuthenticationDecidesRequests(t *testing.T) {
	url := annotations{"auth-url": "http://auth.a.svc.cluster.local:4180/check?x=1"}
	headers := with(url, annotations{"auth-response-headers": "X-User, X-Seen, X-None"})
	signin := with(url, annotations{"auth-signin": "https://$host/start"})
	own := object("a/auth", "nginx", nil, "h/oauth2=auth")
	foreign := object("b/auth", "nginx", nil, "h/oauth2=auth")
	always := with(url, annotations{"auth-always-set-cookie": "true"})
	both := with(signin, annotations{"auth-type": "basic", "auth-secret": "s"})
	toSignIn := at("https://h/start?rd=http://h%2F%3Fa%3Db%26c%3Dd")
	for _, c := range []struct {
		name        string
		annotations annotations
		more        []*networkingv1.Ingress
		requests    []exchanged
		finding     string
	}{
		{"it lets a request in", headers, nil, []exchanged{
			{method: "POST", url: "http://h/p?q=1", answer: map[string]string{"Set-Cookie": "session=1"},
				headers: map[string]string{"Cookie": "c=1", "X-User": "forged", "X-None": "forged", "X-Show": "X-User,X-None,X-Seen"},
				body:    "w /p?q=1 X-User=me X-Seen=GET /check?x=1 POST http://h/p?q=1 /p?q=1 c=1"},
			{url: "http://h/", headers: map[string]string{"Connection": "X-User", "X-Show": "X-User"}, body: "w / X-User=me"},
		}, ""},
		{"it does not", url, nil, []exchanged{
			{url: "http://h/", headers: want("401"), status: 401, answer: map[string]string{"WWW-Authenticate": "Custom x", "Set-Cookie": ""}},
			{url: "http://h/", headers: want("403"), status: 403}, {url: "http://h/", headers: want("500"), status: 500},
			{url: "http://h/", headers: want("302"), status: 500}, {url: "http://h/"},
		}, ""},
		{"cookies beside errors of the backend", url, []*networkingv1.Ingress{object("a/y", "nginx", url, "h/error=failing"), object("a/z", "nginx", always, "h/always=failing")},
			[]exchanged{{url: "http://h/error", status: 503, answer: map[string]string{"Set-Cookie": ""}}, {url: "http://h/always", status: 503, answer: map[string]string{"Set-Cookie": "session=1"}}}, ""},
		{"the client's login is replaced", with(url, annotations{"auth-response-headers": "Authorization"}), nil, []exchanged{
			{url: "http://h/", headers: with(login("me", "x"), map[string]string{"X-Show": "Authorization"}), body: "w / Authorization=issued"}}, ""},
		{"cookies always", always, nil,
			[]exchanged{{url: "http://h/", headers: want("401"), status: 401, answer: map[string]string{"Set-Cookie": "session=1"}}}, ""},
		{"signing in", signin, nil, []exchanged{{url: "http://h/p?a=1&b", headers: want("401"), status: 302,
			answer: map[string]string{"Location": "https://h/start?rd=http://h%2Fp%3Fa%3D1%26b", "Set-Cookie": "session=1"}}}, ""},
		{"signing in with its own parameter", with(signin, annotations{"auth-signin": "https://s/?rd=x"}), nil,
			[]exchanged{{url: "http://h/p", headers: want("401"), status: 302, answer: map[string]string{"Location": "https://s/?rd=x"}}}, ""},
		{"the parameter's name", with(signin, annotations{"auth-signin": "https://s/?a", "auth-signin-redirect-param": "back"}), nil,
			[]exchanged{{url: "http://h/p", headers: want("401"), status: 302, answer: map[string]string{"Location": "https://s/?a&back=http://h%2Fp"}}}, ""},
		{"a method and a redirect", with(headers, annotations{"auth-method": "HEAD", "auth-request-redirect": "https://r"}), nil, []exchanged{
			{url: "http://h/", headers: map[string]string{"X-Show": "X-Seen"}, body: "w / X-Seen=HEAD /check?x=1 GET http://h/ https://r"}}, ""},
		{"the request's own host", annotations{"auth-url": "https://$host/oauth2/auth"}, []*networkingv1.Ingress{own}, []exchanged{
			{url: "http://h/", body: "w /"}, {url: "http://h/", headers: want("401"), status: 401}}, ""},
		{"the own host's route of another namespace", annotations{"auth-url": "https://$host/oauth2/auth"}, []*networkingv1.Ingress{foreign},
			[]exchanged{{url: "http://h/", status: 500}}, ""},
		{"the own host's route is itself", annotations{"auth-url": "https://$host/oauth2/auth"}, nil, []exchanged{{url: "http://h/", status: 500}}, ""},
		{"a Service of another namespace", annotations{"auth-url": "http://auth.b.svc/x"}, nil, []exchanged{{url: "http://h/", status: 503}}, "another namespace"},
		{"a host that a client names", annotations{"auth-url": "http://$http_x/x"}, nil, []exchanged{{url: "http://h/", status: 503}}, "neither $host"},
		{"a user in the URL", annotations{"auth-url": "http://a@b/x"}, nil, []exchanged{{url: "http://h/", status: 503}}, "neither $host"},
		{"a host that is none", annotations{"auth-url": "https://invalid..auth.example/x"}, nil, []exchanged{{url: "http://h/", status: 503}}, "neither $host"},
		{"either a login or the server", with(both, annotations{"satisfy": "any"}), nil, []exchanged{
			{url: "http://h/", headers: with(want("401"), login("me", "secret pass")), body: "w /"}, {url: "http://h/", headers: login("me", "wrong"), body: "w /"},
			{url: "http://h/?a=b&c=d", headers: want("401"), status: 302, answer: toSignIn}, {url: "http://h/", headers: with(want("403"), login("me", "wrong")), status: 403}}, ""},
		{"a login and the server", both, nil, []exchanged{
			{url: "http://h/?a=b&c=d", headers: with(want("401"), login("me", "secret pass")), status: 302, answer: toSignIn}, {url: "http://h/", status: 401},
			{url: "http://h/", headers: login("me", "secret pass"), body: "w /"}}, ""},
		{"no URL", annotations{"auth-url": "x"}, nil, []exchanged{{url: "http://h/", status: 503}}, "no URL"},
		{"a header of the connection", with(url, annotations{"auth-response-headers": "Transfer-Encoding"}), nil, []exchanged{{url: "http://h/", status: 503}}, "copied"},
		{"either is enough", with(url, annotations{"satisfy": "any", "whitelist-source-range": "127.0.0.1", "auth-response-headers": "X-User"}), nil,
			[]exchanged{{url: "http://h/", headers: with(want("403"), map[string]string{"X-User": "forged", "X-Show": "X-User"}), body: "w /"}}, ""},
		{"challenges pass", url, []*networkingv1.Ingress{object("a/y", "nginx", url, "h=/.well-known/acme-challenge/t=acme")},
			[]exchanged{{url: "http://h/.well-known/acme-challenge/t", headers: want("403"), body: "acme /.well-known/acme-challenge/t"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int64
			server := authServer(t, &asked)
			failing := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
			f, r := cluster{
				ingresses: append(c.more, object("a/x", "nginx", c.annotations, "h/=w")),
				endpoints: map[string]string{"a/auth": server, "b/auth": server, "a/failing": failing},
				secrets:   map[string]map[string]string{"a/s": {"auth": "me:{SHA}O1hAcUlX7zkBbV+/3rmbDfUlbNM="}},
			}.serve(t)
			for _, e := range c.requests {
				e.check(t, f)
			}
			if got := reasons(r); c.finding == "" && got != "" || !strings.Contains(got, c.finding) {
				t.Errorf("findings:\n%s", got)
			}
		})
	}
}

// TestAuthenticationServerAtLoopbackIsRefused asks a server by a name of the machine's resolver, which leads to
// loopback.
func TestAuthenticationServerAtLoopbackIsRefused(t *testing.T) {
	var asked atomic.Int64
	_, port, err := net.SplitHostPort(authServer(t, &asked))
	testenv.NoError(t, err)
	for _, c := range []struct {
		name, host string
		refuse     func(netip.Addr) bool
		settings   table.Settings
		status     int
		asked      int64
	}{
		{"a name", "localhost", func(netip.Addr) bool { return false }, table.Settings{}, 200, 1},
		{"a name that leads to loopback", "localhost", RefuseLocal, table.Settings{}, 500, 0},
		{"a loopback address", "127.0.0.1", RefuseLocal, table.Settings{}, 500, 0},
		{"a mapped one", "[::ffff:127.0.0.1]", RefuseLocal, table.Settings{}, 500, 0},
		{"an address of the cluster", "127.0.0.1", func(netip.Addr) bool { return false }, table.Settings{ClusterNetworks: []string{"127.0.0.0/8", "::1/128"}}, 500, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked.Store(0)
			f, _ := cluster{
				ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"auth-url": "http://" + c.host + ":" + port + "/"}, "h/=w")}, settings: c.settings,
			}.serve(t)
			f.upstream.refuse = c.refuse // after the endpoints have been taken
			exchanged{url: "http://h/", status: c.status}.check(t, f)
			testenv.False(t, asked.Load() != c.asked, "the server was asked %d times, want %d", asked.Load(), c.asked)
		})
	}
}
