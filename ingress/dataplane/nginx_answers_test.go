// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMirrorAnnotationCopiesRequests(t *testing.T) {
	one, got := seen(t)
	reading := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "read")
	})
	outside := "127.0.0.1"
	_, port, _ := net.SplitHostPort(one)
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/service", "nginx", annotations{"mirror-target": "http://copy.a.svc:8080/new$request_uri", "mirror-host": "copy.example"}, "a.example/service=b"),
			object("a/outside", "nginx", annotations{"mirror-target": "http://" + outside + ":" + port + "$request_uri", "mirror-request-body": "off"}, "a.example/outside=b"),
			object("a/foreign", "nginx", annotations{"mirror-target": "http://copy.b.svc$request_uri"}, "a.example/foreign=b"),
			object("a/self", "nginx", annotations{"mirror-target": "https://$host/x"}, "a.example/self=b"),
		},
		endpoints: map[string]string{"a/copy": one, "a/b": reading},
	}.serve(t)
	post := func(path string) {
		t.Helper()
		res := testenv.Must(client(t, f.http, "http1").Post("http://a.example"+path, "text/plain", strings.NewReader("text")))(t)
		testenv.Equal(t, body(t, res), "read", "%s is answered with %s", path, res.Status)
	}
	post("/service/x?q=1")
	if have, want := receive1(t, got), "POST copy.example /new/service/x?q=1   4 982d9e3e <nil>"; have != want {
		t.Errorf("the mirror gets %q, want %q", have, want)
	}
	post("/outside")
	if have, want := receive1(t, got), fmt.Sprintf("POST 127.0.0.1:%s /outside   0 e3b0c442 <nil>", port); have != want {
		t.Errorf("the mirror gets %q, want %q", have, want)
	}
	exchanged{url: "http://a.example/foreign", status: 503}.check(t, f)
	exchanged{url: "http://a.example/self", status: 503}.check(t, f)
}

func TestAnnotationsDefaultBackend(t *testing.T) {
	failing := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		status := 200
		_, _ = fmt.Sscanf(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/'):], "/%d", &status)
		http.Error(w, "the backend's own", status)
	})
	errors := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		h := r.Header
		status := 404
		_, _ = fmt.Sscan(h.Get("X-Code"), &status)
		w.WriteHeader(status)
		fmt.Fprintf(w, "%s %s %s %s %s %s %s %s %s", r.Method, r.URL.Path, h.Get("X-Code"), h.Get("X-Format"), h.Get("X-Original-Uri"),
			h.Get("X-Namespace"), h.Get("X-Ingress-Name"), h.Get("X-Service-Name"), h.Get("X-Service-Port"))
	})
	with := func(more ...string) annotations {
		out := annotations{"default-backend": "errors", "custom-http-errors": "404,503, 502"}
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/x", "nginx", with(), "a.example/x=failing"),
			object("a/dead", "nginx", with(), "a.example/dead=dead"),
			object("a/own", "nginx", with("disable-proxy-intercept-errors", "true"), "own.example/x=failing", "own.example/dead=dead"),
			object("a/none", "nginx", with("default-backend", "none"), "none.example/x=failing"),
			object("a/alone", "nginx", annotations{"custom-http-errors": "404"}, "alone.example/=failing"),
			object("a/empty", "nginx", annotations{"default-backend": "web"}, "empty.example/=empty"),
		},
		endpoints: map[string]string{
			"a/failing": failing, "a/errors": errors, "a/dead": closed(t), "a/none": closed(t), "a/empty": "none",
		},
	}.serve(t)
	json := map[string]string{"Accept": "application/json"}
	const own = "the backend's own"
	for _, e := range []exchanged{
		{url: "http://a.example/x/404?q=1", headers: json, status: 404, body: "GET / 404 application/json /x/404?q=1 a x failing 80"},
		{url: "http://a.example/x/503", method: "POST", headers: json, status: 503, body: "GET / 503 application/json /x/503 a x failing 80"},
		{url: "http://a.example/x/200", body: own},
		{url: "http://a.example/x/500", status: 500, body: own},
		{url: "http://a.example/dead", headers: json, status: 502, body: "GET / 502 application/json /dead a dead dead 80"},
		{url: "http://own.example/x/404", status: 404, body: own},
		{url: "http://own.example/dead", headers: json, status: 502, body: "GET / 502 application/json /dead a own dead 80"},
		{url: "http://none.example/x/404", status: 404, body: own},
		{url: "http://alone.example/404", status: 503},
		{url: "http://empty.example/some/path?q=1", headers: map[string]string{"X-Code": "404", "X-Request-Id": "7",
			"X-Show": "X-Code,X-Namespace,X-Ingress-Name,X-Service-Name,X-Service-Port,X-Request-Id"},
			body: "web /some/path?q=1 X-Code=503 X-Namespace=a X-Ingress-Name=empty X-Service-Name=empty X-Service-Port=80 X-Request-Id=7"},
	} {
		e.check(t, f)
	}
}

func TestAnnotationsReplaceInAnswers(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Set-Cookie", "a=1; Domain=.INTERNAL; Path=/app/x; Secure")
		h.Add("Set-Cookie", "b=2; path=/other; domain=elsewhere")
		h.Set("Location", r.Header.Get("X-Location"))
		h.Set("Refresh", "5; URL=http://internal/app/next")
		w.WriteHeader(http.StatusFound)
	})
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/x", "nginx", annotations{
				"proxy-cookie-domain": "internal example.org", "proxy-cookie-path": "/app/ /",
				"proxy-redirect-from": "http://internal/app/", "proxy-redirect-to": "$scheme://$http_host/",
			}, "a.example/x=b"),
			object("a/off", "nginx", annotations{"proxy-cookie-domain": "off", "proxy-redirect-from": "default", "proxy-redirect-to": "x"}, "a.example/off=b"),
			object("a/never", "nginx", annotations{"proxy-redirect-from": "off", "proxy-redirect-to": "x"}, "a.example/never=b"),
			object("a/regex", "nginx", annotations{"proxy-cookie-path": "~^/x /"}, "a.example/regex=b"),
			object("a/one", "nginx", annotations{"proxy-redirect-from": "http://x/"}, "a.example/one=b"),
			object("a/words", "nginx", annotations{"proxy-cookie-domain": "a b c"}, "a.example/words=b"),
		},
		endpoints: map[string]string{"a/b": backend},
	}.serve(t)
	for _, c := range []struct{ path, location, want, refresh, cookies string }{
		{"/x", "http://internal/app/login", "http://a.example/login", "5; URL=http://a.example/next", "[a=1; Domain=example.org; Path=/x; Secure b=2; path=/other; domain=elsewhere]"},
		{"/x", "http://other/app/", "http://other/app/", "5; URL=http://a.example/next", "[a=1; Domain=example.org; Path=/x; Secure b=2; path=/other; domain=elsewhere]"},
		{"/off", "http://internal/app/", "http://internal/app/", "5; URL=http://internal/app/next", "[a=1; Domain=.INTERNAL; Path=/app/x; Secure b=2; path=/other; domain=elsewhere]"},
		{"/never", "http://internal/app/", "http://internal/app/", "5; URL=http://internal/app/next", "[a=1; Domain=.INTERNAL; Path=/app/x; Secure b=2; path=/other; domain=elsewhere]"},
	} {
		res := exchanged{url: "http://a.example" + c.path, headers: map[string]string{"X-Location": c.location}, status: 302, answer: map[string]string{"Location": c.want, "Refresh": c.refresh}}.check(t, f)
		testenv.Equal(t, fmt.Sprint(res.Header["Set-Cookie"]), c.cookies, "%s: the cookies are", c.path)
	}
	for _, path := range []string{"regex", "one", "words"} {
		exchanged{url: "http://a.example/" + path, status: 503}.check(t, f)
	}
}
