// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

func TestAnnotationCustomHeaders(t *testing.T) {
	named := func(name string) annotations { return annotations{"custom-headers": name} }
	f, r := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/good", "nginx", named("a/headers"), "a.example/good=b"),
			object("a/short", "nginx", named("headers"), "a.example/short=b"),
			object("a/absent", "nginx", named("a/absent"), "a.example/absent=b"),
			object("a/foreign", "nginx", named("b/headers"), "a.example/foreign=b"),
			object("a/bad", "nginx", named("bad"), "a.example/bad=b"),
			object("a/framing", "nginx", named("framing"), "a.example/framing=b"),
		},
		configs: map[string]map[string]string{
			"a/headers": {"X-Frame-Options": "DENY", "content-type": "text/x", "X-Dollar": "$remote_addr"}, "b/headers": {"X": "1"},
			"a/bad": {"X": "1\r\nSet-Cookie: x"}, "a/framing": {"Content-Length": "7"},
		},
	}.serve(t)
	for _, path := range []string{"good", "short"} {
		exchanged{url: "http://a.example/" + path, body: "b /" + path, answer: map[string]string{"X-Frame-Options": "DENY", "Content-Type": "text/x", "X-Dollar": "$remote_addr"}}.check(t, f)
	}
	for _, path := range []string{"absent", "foreign", "bad", "framing"} {
		exchanged{url: "http://a.example/" + path, status: 503}.check(t, f)
	}
	for _, want := range []string{"the ConfigMap a/absent with headers does not exist", "a ConfigMap of another namespace", `has "X", which is no header`, `has "Content-Length"`} {
		if !strings.Contains(reasons(r), want) {
			t.Errorf("no event says %q: %s", want, reasons(r))
		}
	}
}

func TestAnnotationAuthProxySetHeaders(t *testing.T) {
	auth := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-User", fmt.Sprint(r.Header["X-Key"]))
	})
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{
			"auth-url": "http://auth.a.svc.cluster.local/", "auth-proxy-set-headers": "a/headers", "auth-response-headers": "X-User",
		}, "a.example/=b")},
		configs:   map[string]map[string]string{"a/headers": {"X-Key": "secret"}},
		endpoints: map[string]string{"a/auth": auth},
	}.serve(t)
	exchanged{url: "http://a.example/", headers: map[string]string{"X-Key": "forged", "X-Show": "X-User"}, body: "b / X-User=[secret]"}.check(t, f)
}

// TestHeadersOfAllIngresses: the keys add-headers and proxy-set-headers of the ConfigMap for all Ingresses.
func TestHeadersOfAllIngresses(t *testing.T) {
	configs := map[string]map[string]string{
		"b/answers": {"X-Frame-Options": "DENY", "X-First": "all"}, "b/requests": {"X-Env": "test", "X-Forwarded-Proto": "https"},
		"a/own": {"X-First": "own"}, "b/framing": {"Content-Length": "7"},
	}
	all := map[string]string{"X-Frame-Options": "DENY", "X-First": "all"}
	for _, c := range []struct {
		name     string
		keys     map[string]string
		requests []exchanged
		finding  string // of the ConfigMap
	}{
		{"answers", map[string]string{"add-headers": "b/answers"}, []exchanged{
			{url: "http://h/", body: "w /", answer: all}, {url: "http://h/own", answer: map[string]string{"X-Frame-Options": "DENY", "X-First": "own"}}}, ""},
		{"beside headers that are hidden", map[string]string{"add-headers": "b/answers", "hide-headers": "Content-Type"}, []exchanged{
			{url: "http://h/", answer: with(all, map[string]string{"Content-Type": ""})}}, ""},
		{"requests", map[string]string{"proxy-set-headers": "b/requests"}, []exchanged{
			{url: "http://h/", headers: map[string]string{"X-Env": "forged", "X-Show": "X-Env,X-Forwarded-Proto"}, body: "w / X-Env=test X-Forwarded-Proto=https"}}, ""},
		{"a ConfigMap that is missing", map[string]string{"add-headers": "b/absent"}, []exchanged{{url: "http://h/", status: 503}}, "the ConfigMap b/absent with headers does not exist"},
		{"no header", map[string]string{"proxy-set-headers": "b/framing"}, []exchanged{{url: "http://h/own", status: 503}}, `has "Content-Length"`},
		{"a name without a namespace", map[string]string{"add-headers": "answers"}, []exchanged{{url: "http://h/", status: 503}}, "no ConfigMap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := cluster{
				ingresses: []*networkingv1.Ingress{object("a/x", "coracle", nil, "h/=w"), object("a/own", "coracle", annotations{"custom-headers": "own"}, "h/own=w")},
				configs:   configs, defaults: c.keys,
			}.serve(t)
			for _, e := range c.requests {
				e.check(t, f)
			}
			if got := fmt.Sprint(r.OfDefaults); (c.finding == "") != (len(r.OfDefaults) == 0) || !strings.Contains(got, c.finding) || !strings.Contains(reasons(r), c.finding) {
				t.Errorf("findings of the ConfigMap: %s\nand of Ingresses: %s", got, reasons(r))
			}
		})
	}
}
