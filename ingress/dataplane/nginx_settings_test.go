// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// keys are those of the ConfigMap for all Ingresses.
type keys = map[string]string

// TestKeysOfTheConfigMap: keys of ingress-nginx's ConfigMap, from a request to its answer.
func TestKeysOfTheConfigMap(t *testing.T) {
	trusted := compile.Rules{TrustedProxies: []string{"127.0.0.0/8"}}
	auth := keys{"global-auth-url": "http://auth.b.svc:4180/check"}
	plain := object("a/x", "nginx", nil, "h/foo=w", "h/bar=w")
	seen := map[string]string{"X-Show": "X-Seen,X-User"}
	failing := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	for _, c := range []struct {
		name     string
		keys     keys
		ingress  *networkingv1.Ingress
		requests []exchanged
		finding  string // of the ConfigMap
	}{
		{"authentication of all", auth, plain, []exchanged{
			{url: "http://h/foo", headers: want("401"), status: 401}, {url: "http://h/bar", headers: want("401"), status: 401},
			{url: "https://h/foo", headers: map[string]string{"X-Show": "X-Forwarded-Port"}, body: "w /foo X-Forwarded-Port=443"}}, ""},
		{"but for some paths", with(auth, keys{"no-auth-locations": "/bar"}), plain, []exchanged{
			{url: "http://h/foo", headers: want("401"), status: 401}, {url: "http://h/bar", headers: want("401")}}, ""},
		{"but for an Ingress", auth, object("a/x", "nginx", annotations{"enable-global-auth": "false"}, "h/bar=w"), []exchanged{{url: "http://h/bar", headers: want("401")}}, ""},
		{"a method", with(auth, keys{"global-auth-method": "HEAD", "global-auth-response-headers": "X-Seen"}), plain, []exchanged{
			{url: "http://h/foo", headers: seen, body: "w /foo X-Seen=HEAD /check GET http://h/foo /foo"}}, ""},
		{"a page to log in", with(auth, keys{"global-auth-signin": "http://login.example/start"}), plain, []exchanged{
			{url: "http://h/foo", headers: want("401"), status: 302, answer: at("http://login.example/start?rd=http://h%2Ffoo")}}, ""},
		{"headers of its answer", with(auth, keys{"global-auth-response-headers": "X-User, X-None"}), plain, []exchanged{
			{url: "http://h/foo", headers: with(seen, map[string]string{"X-User": "forged"}), body: "w /foo X-User=me"}}, ""},
		{"where it sends back to", with(auth, keys{"global-auth-request-redirect": "https://r.example", "global-auth-response-headers": "X-Seen"}), plain, []exchanged{
			{url: "http://h/foo", headers: seen, body: "w /foo X-Seen=GET /check GET http://h/foo https://r.example"}}, ""},
		{"its cookies", auth, object("a/x", "nginx", nil, "h/=w", "h/error=failing"), []exchanged{
			{url: "http://h/?a=b&c=d", answer: map[string]string{"Set-Cookie": "session=1"}}, {url: "http://h/error", status: 503, answer: map[string]string{"Set-Cookie": ""}}}, ""},
		{"its cookies with all answers", with(auth, keys{"global-auth-always-set-cookie": "true"}), object("a/x", "nginx", nil, "h/error=failing"), []exchanged{
			{url: "http://h/error", status: 503, answer: map[string]string{"Set-Cookie": "session=1"}}}, ""},
		{"blocked networks", keys{"block-cidrs": "172.16.0.0/12,127.0.0.0/8"}, plain, []exchanged{{url: "http://h/foo", status: 403}}, ""},
		{"other networks", keys{"block-cidrs": "172.16.0.0/12"}, plain, []exchanged{{url: "http://h/foo"}}, ""},
		{"allowed networks", keys{"whitelist-source-range": "1.1.1.1", "error-log-level": "debug"}, plain, []exchanged{{url: "http://h/foo", status: 403}}, "error-log-level"},
		{"redirects to https but for some paths", keys{"force-ssl-redirect": "true", "no-tls-redirect-locations": "/bar"}, plain, []exchanged{
			{url: "http://h:8080/foo", status: 308, answer: at("https://h/foo")}, {url: "http://h/bar"}}, ""},
		{"what is not served closes all", keys{"block-user-agents": "AlphaBot"}, plain, []exchanged{{url: "http://h/foo", status: 503}}, "block-user-agents"},
		{"what only tunes", keys{"use-gzip": "true", "load-balance": "ewma", "proxy-connect-timeout": "50k"}, plain, []exchanged{
			{url: "http://h/foo", headers: map[string]string{"Accept-Encoding": "gzip"}, body: "w /foo", answer: map[string]string{"Content-Encoding": ""}}}, "use-gzip"},
		{"a time-out that is none", keys{"proxy-read-timeout": "20k"}, plain, []exchanged{{url: "http://h/foo", status: 503}}, "proxy-read-timeout"},
		{"what trusted proxies say", keys{"use-forwarded-headers": "true"}, plain, []exchanged{{url: "http://h/foo", body: "w /foo X-Forwarded-Proto=https X-Forwarded-Host=g X-Forwarded-Port=1234",
			headers: map[string]string{"X-Forwarded-Proto": "https", "X-Forwarded-Host": "g", "X-Forwarded-Port": "1234", "X-Show": "X-Forwarded-Proto,X-Forwarded-Host,X-Forwarded-Port"}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int64
			settings := table.Settings{}
			if c.keys["use-forwarded-headers"] != "" {
				settings.TrustedProxies = trusted.TrustedProxies
			}
			f, r := cluster{
				ingresses: []*networkingv1.Ingress{c.ingress}, defaults: c.keys, rules: trusted, settings: settings,
				endpoints: map[string]string{"b/auth": authServer(t, &asked), "a/failing": failing},
			}.serve(t)
			for _, e := range c.requests {
				e.check(t, f)
			}
			if got := fmt.Sprint(r.OfDefaults); (c.finding == "") != (len(r.OfDefaults) == 0) || !strings.Contains(got, c.finding) {
				t.Errorf("findings of the ConfigMap: %s", got)
			}
		})
	}
}

// of changes an Ingress.
func of(ing *networkingv1.Ingress, change func(*networkingv1.Ingress)) *networkingv1.Ingress {
	change(ing)
	return ing
}

func backed(ing *networkingv1.Ingress) {
	ing.Spec.DefaultBackend = &networkingv1.IngressBackend{
		Service: &networkingv1.IngressServiceBackend{Name: "d", Port: networkingv1.ServiceBackendPort{Number: 80}},
	}
}

func secured(ing *networkingv1.Ingress) {
	ing.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{ing.Spec.Rules[0].Host}, SecretName: "cert"}}
}

func TestDefaultBackendsOfIngresses(t *testing.T) {
	long := "long-name-" + strings.Repeat("x", 53)
	empty := func(ing *networkingv1.Ingress) { ing.Spec.Rules = []networkingv1.IngressRule{{Host: "only.example"}} }
	var nothing []exchanged
	for _, url := range []string{"http://127.0.0.1/", "https://127.0.0.1/demo", "http://foo.example/", "https://foo.example/demo"} {
		nothing = append(nothing, exchanged{url: url, status: 404}, exchanged{url: url, method: http.MethodPost, status: 404})
	}
	run(t, []scene{
		{"nothing", nil, nothing, ""},
		{"of all hosts", []*networkingv1.Ingress{of(object("a/x", "nginx", nil), backed)}, []exchanged{
			{url: "http://any.example/p", body: "d /p"}, {url: "https://127.0.0.1/", body: "d /"}}, ""},
		{"of a host without paths", []*networkingv1.Ingress{of(of(object("a/x", "nginx", annotations{"proxy-body-size": "8k"}), empty), backed)}, []exchanged{
			{url: "http://only.example/p", body: "d /p"}, {url: "http://other.example/", status: 404}}, ""},
		{"behind paths", []*networkingv1.Ingress{of(object("a/x", "nginx", nil, "h/p=w"), backed)}, []exchanged{
			{url: "http://h/p", body: "w /p"}, {url: "http://h/q", body: "d /q"}, {url: "http://g/p", status: 404}}, ""},
		{"a rule without a host", []*networkingv1.Ingress{object("a/x", "nginx", nil, "/=w")}, []exchanged{{url: "http://any.example/", body: "w /"}}, ""},
		{"a Service with a long name", []*networkingv1.Ingress{object("a/x", "nginx", nil, "h/="+long)}, []exchanged{{url: "http://h/", body: long + " /"}}, ""},
		{"each host its Service", []*networkingv1.Ingress{object("a/x", "nginx", nil, "first.host/=first", "second.host/=second")}, []exchanged{
			{url: "http://first.host/exact", body: "first /exact"}, {url: "http://second.host/exact", body: "second /exact"}}, ""},
		{"hosts have paths of their own", []*networkingv1.Ingress{object("a/x", "nginx", nil, "h/foo=w"), object("a/y", "nginx", nil, "g/ping=v")}, []exchanged{
			{url: "http://h/foo", body: "w /foo"}, {url: "http://h/ping", status: 404}, {url: "http://g/ping", body: "v /ping"}, {url: "http://g/foo", status: 404}}, ""},
		{"a backend that is no Service", []*networkingv1.Ingress{of(object("a/x", "nginx", nil, "h/=w"), func(ing *networkingv1.Ingress) {
			ing.Spec.Rules[0].HTTP.Paths[0].Backend = networkingv1.IngressBackend{Resource: &corev1.TypedLocalObjectReference{Kind: "Anything", Name: "mytest"}}
		}), object("a/y", "nginx", nil, "g/=v")}, []exchanged{{url: "http://h/", status: 503}, {url: "http://g/", body: "v /"}}, "only Services"},
	})
	f, _ := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", nil, "h/=w")}, endpoints: map[string]string{"a/w": "none"}}.serve(t)
	exchanged{url: "http://h/", status: http.StatusServiceUnavailable}.check(t, f)
}

// TestRedirectWhereTLSIsAskedFor: with class nginx, an Ingress with spec.tls is redirected to https whether its Secret
// is there or not.
func TestRedirectWhereTLSIsAskedFor(t *testing.T) {
	good := newAuthority(t, "good").issue("h.example")
	for _, c := range []struct {
		name   string
		secret map[string]string
		class  string
		status int
	}{
		{"a Secret that is missing", nil, "nginx", 308},
		{"a Secret of something else", map[string]string{"key": "value"}, "nginx", 308},
		{"a certificate", map[string]string{corev1.TLSCertKey: good.Chain, corev1.TLSPrivateKeyKey: good.Key}, "nginx", 308},
		{"of our own class", nil, "coracle", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			secrets := map[string]map[string]string{}
			if c.secret != nil {
				secrets["a/cert"] = c.secret
			}
			f, r := cluster{ingresses: []*networkingv1.Ingress{of(object("a/x", c.class, nil, "h.example/=w", "h.example=/.well-known/acme-challenge/t=acme"), secured)}, secrets: secrets}.serve(t)
			e := exchanged{url: "http://h.example:8080/p", status: c.status}
			if c.status == 308 {
				e.answer = at("https://h.example/p")
			}
			e.check(t, f)
			exchanged{url: "https://h.example/p", headers: map[string]string{"X-Show": "X-Forwarded-Port"}, body: "w /p X-Forwarded-Port=443"}.check(t, f)
			exchanged{url: "http://h.example/.well-known/acme-challenge/t", body: "acme /.well-known/acme-challenge/t"}.check(t, f)
			if (r.Sections[table.CertificateKey("a", "cert")] == nil) != strings.Contains(reasons(r), compile.ReasonSecret) {
				t.Errorf("findings: %s", reasons(r))
			}
		})
	}
}

// TestChangedObjectsAreServedWithoutRestart serves one state of objects after the other, without another process.
func TestChangedObjectsAreServedWithoutRestart(t *testing.T) {
	authority := newAuthority(t, "good")
	certificate := func() map[string]string {
		c := authority.issue("h.example")
		return map[string]string{corev1.TLSCertKey: c.Chain, corev1.TLSPrivateKeyKey: c.Key}
	}
	one := func(class string, change func(*networkingv1.Ingress)) *networkingv1.Ingress {
		ing := object("a/x", class, annotations{"ssl-redirect": "false"}, "h.example/=w")
		if change != nil {
			change(ing)
		}
		return ing
	}
	byAnnotation := func(ing *networkingv1.Ingress) {
		ing.Spec.IngressClassName = nil
		ing.Annotations["kubernetes.io/ingress.class"] = "nginx"
	}
	first, second := certificate(), certificate()
	state := cluster{}
	f, _ := state.serve(t)
	for _, c := range []struct {
		name   string
		ing    *networkingv1.Ingress
		secret map[string]string // nil for none
		status int
		shown  map[string]string // the certificate; nil for the default one
	}{
		{"no class", one("nginx", func(ing *networkingv1.Ingress) { ing.Spec.IngressClassName = nil }), nil, 404, nil},
		{"a class is added", one("nginx", nil), nil, 200, nil},
		{"another class", one("other", nil), nil, 404, nil},
		{"the annotation of a class", one("nginx", byAnnotation), nil, 200, nil},
		{"the class is in the field again", one("nginx", nil), nil, 200, nil},
		{"TLS is added, without the Secret", one("nginx", secured), nil, 200, nil},
		{"the Secret appears", one("nginx", secured), first, 200, first},
		{"another certificate", one("nginx", secured), second, 200, second},
		{"the Secret has gone", one("nginx", secured), nil, 200, nil},
		{"the Secret is back", one("nginx", secured), second, 200, second},
		{"an annotation changes", one("nginx", func(ing *networkingv1.Ingress) {
			secured(ing)
			ing.Annotations["nginx.ingress.kubernetes.io/denylist-source-range"] = "127.0.0.0/8"
		}), second, 403, second},
		{"TLS is taken away", one("nginx", nil), second, 200, nil},
		{"the host changes", of(object("a/x", "nginx", nil, "g.example/=w"), secured), second, 404, nil},
	} {
		state = cluster{ingresses: []*networkingv1.Ingress{c.ing}, secrets: map[string]map[string]string{}}
		if c.secret != nil {
			state.secrets["a/cert"] = c.secret
		}
		state.change(t, f)
		exchanged{url: "http://h.example/", status: c.status}.check(t, f)
		exchanged{url: "https://h.example./", status: c.status}.check(t, f)
		conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: "h.example", InsecureSkipVerify: true}))(t)
		shown := encoded(conn.ConnectionState().PeerCertificates[0])
		_ = conn.Close()
		if c.shown == nil && (shown == first[corev1.TLSCertKey] || shown == second[corev1.TLSCertKey]) || c.shown != nil && shown != c.shown[corev1.TLSCertKey] {
			t.Errorf("%s: another certificate is served", c.name)
		}
		testenv.Require(t, !t.Failed(), "after: %s", c.name)
	}
}

// TestBodyOfAnUnauthenticatedRequestIsNotTheNextOne: the proxy redirects to a page to log in, and what it did not read
// reaches no backend.
func TestBodyOfAnUnauthenticatedRequestIsNotTheNextOne(t *testing.T) {
	var asked atomic.Int64
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/x", "nginx", annotations{"auth-url": "http://auth.a.svc/", "auth-signin": "https://login.example/"}, "h/=w"), object("a/hidden", "nginx", nil, "hidden/=hidden"),
	}, endpoints: map[string]string{"a/auth": authServer(t, &asked)}}.serve(t)
	inner := "GET /inner HTTP/1.1\r\nHost: hidden\r\n\r\n"
	got := exchangeRaw(t, f.http, fmt.Sprintf("GET /echo HTTP/1.1\r\nHost: h\r\nX-Want: 401\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner)+
		"GET /next HTTP/1.1\r\nHost: hidden\r\nConnection: close\r\n\r\n")
	if strings.Count(got, "HTTP/1.1 ") != 2 || !strings.HasPrefix(got, "HTTP/1.1 302") || strings.Contains(got, "hidden /inner") || !strings.HasSuffix(got, "hidden /next") {
		t.Errorf("the client got %q", got)
	}
}

// TestEndpointsTakeTurns: endpoints get equally many requests, and come and go without a change of a route.
func TestEndpointsTakeTurns(t *testing.T) {
	addresses := make([]string, 3)
	for i := range addresses {
		addresses[i] = backendServer(t, showing(fmt.Sprint(i)))
	}
	changes := site(t, "", addresses...)
	f := newFixture(t, Options{}, changes...)
	c := client(t, f.http, "http1")
	count := map[string]int{}
	for range 30 {
		_, text := get(t, c, "http://h/")
		count[text]++
	}
	testenv.False(t, count["0 /"] != 10 || count["1 /"] != 10 || count["2 /"] != 10, "the endpoints got %v", count)
	for _, c := range []struct {
		endpoints []string
		status    int
	}{{nil, 503}, {addresses[:2], 200}, {nil, 503}} {
		f.Apply([]table.Change{section(t, changes[1].Key, table.Endpoints{Addresses: c.endpoints})})
		exchanged{url: "http://h/", status: c.status}.check(t, f)
	}
}
