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
	for _, want := range []string{"the ConfigMap absent with headers does not exist", "a ConfigMap of another namespace", `has "X", which is no header`, `has "Content-Length"`} {
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
