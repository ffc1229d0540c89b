// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRequestBodySizeIsLimited(t *testing.T) {
	sink := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	for _, c := range []struct {
		limit, finding string
		size           int
		chunked        bool
		status         int
	}{
		{"1k", "", 1024, false, 200}, {"1k", "", 1025, false, 413}, {"1K", "", 1024, true, 200}, {"1k", "", 100 << 10, true, 413}, {"0", "", 3 << 20, false, 200},
		{"8m", "", 3 << 20, true, 200}, {"1x", "no size", 1, false, 503}, {"-1", "no size", 1, false, 503}, {"9999999999g", "no size", 1, false, 503},
	} {
		t.Run(fmt.Sprint(c.limit, c.size, c.chunked), func(t *testing.T) {
			f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"proxy-body-size": c.limit}, "h/=w")},
				endpoints: map[string]string{"a/w": sink}}.serve(t)
			for _, protocol := range []string{"http1", "h2c"} {
				var from io.Reader = bytes.NewReader(make([]byte, c.size))
				if c.chunked {
					from = struct{ io.Reader }{from}
				}
				res := testenv.Must(client(t, f.http, protocol).Post("http://h/", "text/plain", from))(t)
				if text := body(t, res); res.StatusCode != c.status {
					t.Errorf("%s: %d %q, want %d", protocol, res.StatusCode, text, c.status)
				}
			}
			if got := reasons(r); c.finding == "" && got != "" || !strings.Contains(got, c.finding) {
				t.Errorf("findings:\n%s", got)
			}
		})
	}
}

func TestReadTimeoutEndsStuckRequest(t *testing.T) {
	stuck := backendServer(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	f, r := cluster{ingresses: []*networkingv1.Ingress{
		object("a/x", "nginx", annotations{"proxy-read-timeout": "1", "proxy-send-timeout": "3600s"}, "h/=w"), object("a/y", "nginx", annotations{"proxy-read-timeout": "soon"}, "g/=w"),
	}, endpoints: map[string]string{"a/w": stuck}}.serve(t)
	exchanged{url: "http://h/", status: http.StatusGatewayTimeout}.check(t, f)
	exchanged{url: "http://g/", status: http.StatusServiceUnavailable}.check(t, f)
	testenv.Contains(t, reasons(r), "seconds", "")
}

func TestRateLimitAnnotations(t *testing.T) {
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/x", "nginx", annotations{"limit-rpm": "1", "limit-burst-multiplier": "2", "limit-whitelist": "10.0.0.0/8"}, "h/a=w", "h/b=w"),
	}, settings: table.Settings{TrustedProxies: []string{"127.0.0.1/32"}}}.serve(t)
	for i, want := range []int{200, 200, 200, 503, 503} { // the burst, and the one that begins it
		exchanged{url: []string{"http://h/a", "http://h/b"}[i%2], headers: from("1.1.1.1"), status: want}.check(t, f)
		exchanged{url: "http://h/a", headers: from("10.0.0.1")}.check(t, f)
	}
	exchanged{url: "http://h/a", headers: from("2.2.2.2")}.check(t, f)
}

func TestLimiterRefillsAndEvictsClients(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := &limiter{limit: &table.Limit{PerSecond: 2, Burst: 1, Connections: 4}, clients: map[string]*account{}}
	take := func(n int) (passed int) {
		for range n {
			if release := l.acquire("a", now); release != nil {
				release()
				passed++
			}
		}
		return passed
	}
	testenv.Equal(t, take(10), 3, "requests at once:")
	now = now.Add(time.Second)
	testenv.Equal(t, take(10), 2, "requests after a second:")
	for i := range 3 * maxClients {
		l.acquire(fmt.Sprint(i), now.Add(time.Duration(i)*time.Millisecond))() // each with something owed for half a second
	}
	testenv.False(t, len(l.clients) > maxClients, "%d clients are remembered", len(l.clients))
}

// TestLimiterEvictsIdleClientsFirst: those that have asked for nothing for long make room, whichever limits there are.
func TestLimiterEvictsIdleClientsFirst(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, limit := range []table.Limit{{PerSecond: 1, Burst: 1}, {PerMinute: 1, Burst: 1}, {Connections: 1}} {
		l := &limiter{limit: &limit, clients: map[string]*account{}}
		for i := range maxClients {
			l.acquire(fmt.Sprint(i), now)()
		}
		l.acquire("a", now.Add(time.Hour))()
		testenv.Equal(t, len(l.clients), 1, "clients that are remembered:")
	}
}

func TestConnectionsOfOneClientAreLimited(t *testing.T) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	slow := backendServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-leave
		}
	})
	f, _ := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"limit-connections": "1"}, "h/=w")}, endpoints: map[string]string{"a/w": slow}}.serve(t)
	first := make(chan int)
	go func() {
		res, err := client(t, f.http, "http1").Get("http://h/slow")
		if err != nil {
			first <- 0
			return
		}
		_ = res.Body.Close()
		first <- res.StatusCode
	}()
	<-arrived
	exchanged{url: "http://h/", status: 503}.check(t, f)
	close(leave)
	testenv.Equal(t, <-first, 200, "the first request gave")
}

func TestCORSAnnotationsSetHeaders(t *testing.T) {
	const prefix = "Access-Control-"
	origin := func(o string) map[string]string { return map[string]string{"Origin": o} }
	listed := annotations{"enable-cors": "true", "cors-allow-origin": "https://a.example:8443, https://*.b.example", "cors-expose-headers": "X-A, *", "cors-max-age": "5",
		"cors-allow-methods": "GET", "cors-allow-headers": "X-B", "cors-allow-credentials": "false"}
	none := map[string]string{prefix + "Allow-Origin": "", "Vary": "Origin"}
	for _, c := range []struct {
		name        string
		annotations annotations
		requests    []exchanged
		finding     string
	}{
		{"defaults", annotations{"enable-cors": "true", "whitelist-source-range": "10.0.0.1"}, []exchanged{
			{method: "OPTIONS", url: "http://h/", headers: origin("https://o"), status: 204, answer: map[string]string{prefix + "Allow-Origin": "*", prefix + "Allow-Credentials": "true",
				prefix + "Allow-Methods": "GET, PUT, POST, DELETE, PATCH, OPTIONS", prefix + "Max-Age": "1728000"}},
			{url: "http://h/", status: 403, answer: map[string]string{prefix + "Allow-Origin": "*"}},
		}, ""},
		{"a list", listed, []exchanged{
			{method: "OPTIONS", url: "http://h/", headers: origin("https://a.example:8443"), status: 204, answer: map[string]string{
				prefix + "Allow-Origin": "https://a.example:8443", prefix + "Allow-Credentials": "", prefix + "Allow-Methods": "GET", prefix + "Allow-Headers": "X-B",
				prefix + "Max-Age": "5", "Vary": "Origin"}},
			{url: "http://h/", headers: origin("https://x.b.example"), body: "w /", answer: map[string]string{prefix + "Allow-Origin": "https://x.b.example", prefix + "Expose-Headers": "X-A, *"}},
			{url: "http://h/", headers: origin("https://b.example"), body: "w /", answer: none}, {url: "http://h/", headers: origin("https://y.x.b.example"), answer: none},
			{url: "http://h/", headers: origin("http://x.b.example"), answer: none}, {method: "OPTIONS", url: "http://h/", headers: origin("https://evil"), body: "w /", answer: none},
		}, ""},
		{"all origins", annotations{"enable-cors": "true", "cors-allow-origin": "*"}, []exchanged{{url: "http://h/", answer: map[string]string{prefix + "Allow-Origin": "*"}}}, ""},
		{"origins that are empty", annotations{"enable-cors": "true", "cors-allow-origin": "   "}, []exchanged{
			{url: "http://h/", headers: origin("http://o.example"), answer: map[string]string{prefix + "Allow-Origin": "*"}},
			{url: "http://h/", headers: origin("o.example"), answer: map[string]string{prefix + "Allow-Origin": "*"}}}, ""},
		{"origins between commas", annotations{"enable-cors": "true", "cors-allow-origin": "https://o-1.example:8080,   ,https://o-2.example:8080,"}, []exchanged{
			{url: "http://h/", headers: origin("https://o-1.example:8080"), answer: map[string]string{prefix + "Allow-Origin": "https://o-1.example:8080"}},
			{url: "http://h/", headers: origin("https://o-2.example:8080"), answer: map[string]string{prefix + "Allow-Origin": "https://o-2.example:8080"}},
			{url: "http://h/", headers: origin("https://o-3.example:8080"), answer: none}}, ""},
		{"origins of other schemes", annotations{"enable-cors": "true", "cors-allow-origin": "test://localhost, tauri://localhost:3000"}, []exchanged{
			{url: "http://h/", headers: origin("test://localhost"), answer: map[string]string{prefix + "Allow-Origin": "test://localhost"}},
			{url: "http://h/", headers: origin("tauri://localhost:3000"), answer: map[string]string{prefix + "Allow-Origin": "tauri://localhost:3000"}}}, ""},
		{"ports of origins", annotations{"enable-cors": "true", "cors-allow-origin": "http://o.example:8080, http://p.example, http://*.o.example:8080"}, []exchanged{
			{url: "http://h/", headers: origin("http://o.example:8080"), answer: map[string]string{prefix + "Allow-Origin": "http://o.example:8080"}},
			{url: "http://h/", headers: origin("http://bar-foo.o.example:8080"), answer: map[string]string{prefix + "Allow-Origin": "http://bar-foo.o.example:8080"}},
			{url: "http://h/", headers: origin("http://o.example"), answer: none}, {url: "http://h/", headers: origin("http://p.example:8080"), answer: none},
			{url: "http://h/", headers: origin("http://x.o.example"), answer: none}, {url: "http://h/", headers: origin("http://oxexample:8080"), answer: none}}, ""},
		{"off", annotations{"enable-cors": "false", "cors-max-age": "5"}, []exchanged{{url: "http://h/", headers: origin("https://o"), answer: map[string]string{prefix + "Allow-Origin": ""}}}, ""},
		{"an origin that is none", annotations{"enable-cors": "true", "cors-allow-origin": "https://a, b"}, []exchanged{{url: "http://h/", status: 503}}, "no origin"},
		{"methods that are none", annotations{"enable-cors": "true", "cors-allow-methods": "GET;\r\nX"}, []exchanged{{url: "http://h/", status: 503}}, "no list of names"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", c.annotations, "h/=w")}}.serve(t)
			for _, e := range c.requests {
				e.check(t, f)
			}
			if got := reasons(r); c.finding == "" && got != "" || !strings.Contains(got, c.finding) {
				t.Errorf("findings:\n%s", got)
			}
		})
	}
}
