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

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestHeaderProxyReachesNoServer sends the header that CGI programs read as the variable HTTP_PROXY, and as a trailer.
func TestHeaderProxyReachesNoServer(t *testing.T) {
	seen := make(chan string, 20) // more than there are requests
	server := func(name string) string {
		return backendServer(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			seen <- fmt.Sprint(name, r.Header["Proxy"], r.Trailer["Proxy"], r.Header["X-Other"])
		})
	}
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/plain", "coracle", nil, "h/plain=w"),
		object("a/asks", "nginx", annotations{"auth-url": "http://auth.a.svc.cluster.local/", "mirror-target": "http://copy.a.svc.cluster.local"}, "h/asks=w"),
	}, endpoints: map[string]string{"a/w": server("backend"), "a/auth": server("auth"), "a/copy": server("mirror")}}.serve(t)
	for path, servers := range map[string][]string{"/plain": {"backend"}, "/asks": {"auth", "backend", "mirror"}} {
		for _, protocol := range []string{"http1", "h2c"} {
			req := testenv.Must(http.NewRequest(http.MethodPost, "http://h"+path, io.MultiReader(strings.NewReader("x"))))(t)
			req.Header = http.Header{"Proxy": {"http://evil.example:1"}, "X-Other": {"1"}}
			req.Trailer = http.Header{"Proxy": {"http://evil.example:2"}}
			testenv.Must(client(t, f.http, protocol).Do(req))(t).Body.Close()
			got := map[string]bool{}
			for range servers {
				got[<-seen] = true
			}
			for _, server := range servers {
				testenv.True(t, got[server+"[] [] [1]"], "%s %s: the servers saw %v", protocol, path, got)
			}
		}
	}
	websocket, saw := recorder(t)
	f = newFixture(t, Options{}, site(t, "", websocket)...)
	exchangeRaw(t, f.http, "GET / HTTP/1.1\r\nHost: h\r\npROXY: http://evil.example\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
	got := <-saw
	testenv.False(t, strings.Contains(got, "evil"), "the backend of a websocket saw %q", got)
}

// TestForwardedPortIsTheListeners sends Host headers with ports of the client's choice.
func TestForwardedPortIsTheListeners(t *testing.T) {
	w := backendServer(t, showing("w"))
	gateway := table.GatewaySite("n", "g", 8080)
	for _, c := range []struct {
		site, url, proto, want string
		trusted                []string
	}{
		{site: "s", url: "http://h:8443/", want: "80"},
		{site: "s", url: "https://h:81/", want: "443"},
		{site: gateway, url: "http://h:81/", want: "8080"},
		{site: gateway, url: "https://h/", want: "8080"},
		{site: "s", url: "http://h:81/", proto: "https", trusted: []string{"127.0.0.0/8"}, want: "443"},
		{site: gateway, url: "http://h:81/", proto: "https", trusted: []string{"127.0.0.0/8"}, want: "443"},
		{site: gateway, url: "http://h:81/", proto: "http", trusted: []string{"127.0.0.0/8"}, want: "8080"},
	} {
		b := service("b")
		f := newFixtureAt(t, Options{}, [2]string{c.site, c.site}, section(t, table.HostKey(c.site, ""), table.Host{Routes: []table.Route{
			{Path: "/", Kind: table.PathPrefix, Backends: []table.Backend{b}},
		}}), section(t, b.Key(), table.Endpoints{Addresses: []string{w}}), section(t, table.KindSettings, table.Settings{TrustedProxies: c.trusted}))
		headers := map[string]string{"X-Show": "X-Forwarded-Port", "X-Forwarded-Port": ""}
		if c.proto != "" {
			headers["X-Forwarded-Proto"] = c.proto
		}
		if c.trusted != nil {
			delete(headers, "X-Forwarded-Port")
		}
		exchanged{url: c.url, headers: headers, body: "w / X-Forwarded-Port=" + c.want}.check(t, f)
	}
}

// TestImpossibleStatusIsAFailureOfTheBackend: net/http panics when it is to send such a status.
func TestImpossibleStatusIsAFailureOfTheBackend(t *testing.T) {
	for _, status := range []string{"000", "007", "099"} {
		backend := accepting(t, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, "HTTP/1.1 "+status+" X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
			_ = conn.Close()
		})
		f := newFixture(t, Options{}, site(t, "", backend)...)
		exchanged{url: "http://h/", status: http.StatusBadGateway}.check(t, f)
		exchanged{url: "http://h/", headers: map[string]string{"Connection": "Upgrade", "Upgrade": "websocket"}, status: http.StatusBadGateway}.check(t, f)
		testenv.Equal(t, f.Stats().Panics.Load(), 0, "panics:")
	}
}

func TestRedirectsStayOnTheWeb(t *testing.T) {
	one := func(a annotations) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{object("a/x", "nginx", a, "h/=w")}
	}
	closed := []exchanged{{url: "http://h/", status: 503, answer: at("")}}
	var scenes []scene
	for _, target := range []string{"javascript:alert(1)", "data:text/html,x", "myapp://open", "FTP://f.example/", "java${arg_x}script:x", "ftp:$request_uri"} {
		want, finding := closed, "http"
		if strings.HasPrefix(target, "java$") {
			want, finding = []exchanged{{url: "http://h/", status: 400, answer: at("")}}, ""
		}
		scenes = append(scenes, scene{"permanent " + target, one(annotations{"permanent-redirect": target}), want, finding},
			scene{"temporal " + target, one(annotations{"temporal-redirect": target}), want, finding})
	}
	scenes = append(scenes,
		scene{"a target of the client's choice", one(annotations{"temporal-redirect": "$arg_to"}), []exchanged{
			{url: "http://h/?to=javascript:alert(1)", status: 400, answer: at("")}, {url: "http://h/?to=JAVASCRIPT:x", status: 400, answer: at("")},
			{url: "http://h/?to=HTTPS://to.example/a:b", status: 302, answer: at("HTTPS://to.example/a:b")}, {url: "http://h/?to=/a:b", status: 302, answer: at("/a:b")},
			{url: "http://h/?to=?a:b", status: 302, answer: at("?a:b")},
		}, ""},
		scene{"white space that browsers leave out", one(annotations{"temporal-redirect": "$http_x_to"}), []exchanged{
			{url: "http://h/", headers: map[string]string{"X-To": "java\tscript:alert(1)"}, status: 400, answer: at("")},
			{url: "http://h/", headers: map[string]string{"X-To": "https://to.example"}, status: 302, answer: at("https://to.example")},
		}, ""},
		scene{"a scheme that is a variable", one(annotations{"permanent-redirect": "${scheme}://to.example"}), []exchanged{{url: "http://h/", status: 301, answer: at("http://to.example")}}, ""},
		scene{"a login page", one(annotations{"auth-url": "http://w.a.svc/", "auth-signin": "javascript:alert(1)"}), closed, "auth-signin"},
	)
	run(t, scenes)
}

// TestRewriteKeepsEscapes: what rewrite-target takes of a path reaches the backend as it came.
func TestRewriteKeepsEscapes(t *testing.T) {
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/x", "nginx", annotations{"rewrite-target": "/new/$2", "use-regex": "true"}, "h~/foo(/|$)(.*)=w"),
		object("a/y", "nginx", annotations{"rewrite-target": "/x?p=$1", "use-regex": "true"}, "h~/query/(.*)=w"),
		object("a/z", "coracle", annotations{"rewrite-target": "/$1"}, "g~/(.*)=w"),
	}}.serve(t)
	for _, path := range []string{"a%3Bb", "a%2Bb", "a%26b%3Dc", "a%0Ab/c", "a%0D%0AX:y", "%21%24%27%28%29%2A%2C%3A%40", "a;v=1/b", "a%2Fb%25c", "%C3%A4%20x", "a%5Bb", "a%3Fb%23"} {
		exchanged{url: "http://h/foo/" + path, body: "w /new/" + path}.check(t, f)
		exchanged{url: "http://g/" + path, body: "w /" + path}.check(t, f)
	}
	for path, want := range map[string]string{"a%3Bb": "a%3Bb", "a&b": "a%26b", "a+b": "a%2Bb", "a%26b": "a%26b", "a%0Ab": "a%0Ab", "a%2Fb": "a%2Fb"} {
		exchanged{url: "http://h/query/" + path, body: "w /x?p=" + want}.check(t, f)
	}
}
