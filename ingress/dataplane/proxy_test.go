// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// allProtocols runs a test for each protocol of clients with the URL to use.
func allProtocols(t *testing.T, f *fixture, test func(t *testing.T, c *http.Client, url string)) {
	t.Helper()
	for _, protocol := range []string{"http1", "h2c"} {
		t.Run(protocol, func(t *testing.T) { test(t, client(t, f.http, protocol), "http://example.org") })
	}
	for _, protocol := range []string{"http1", "h2"} {
		t.Run("tls/"+protocol, func(t *testing.T) { test(t, client(t, f.https, protocol), "https://example.org") })
	}
	t.Run("h3", func(t *testing.T) { test(t, client(t, f.http3, "h3"), "https://example.org") })
}

func TestRequestsArriveAsTheyWereSent(t *testing.T) {
	for _, backendProtocol := range []string{table.HTTP1, table.H2C} {
		backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
			text, _ := io.ReadAll(r.Body)
			w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
			w.Header().Set("X-Odd_Name", "kept")
			fmt.Fprintf(w, "%s %s %s %s %s %q", r.Method, r.Host, r.RequestURI, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("User-Agent"), text)
		})
		f := newFixture(t, Options{}, site(t, backendProtocol, backend)...)
		allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
			scheme, _, _ := strings.Cut(url, ":")
			req := testenv.Must(
				http.NewRequest(http.MethodPost, url+"/x", io.MultiReader(strings.NewReader("some "), strings.NewReader("body"))))(t)
			req.URL.Opaque = "/a//b%2Fc/../d%2fe"
			req.URL.RawQuery = "a=1;b=2&c"
			req.Host = "Example.org:8443"
			req.Header["User-Agent"] = []string{""}
			res := testenv.Must(c.Do(req))(t)
			want := fmt.Sprintf("POST Example.org:8443 /a/d%%2Fe?a=1;b=2&c %s  %q", scheme, "some body")
			if got := body(t, res); got != want || res.StatusCode != http.StatusOK {
				t.Errorf("the backend saw\n%s, want\n%s", got, want)
			}
			if _, guessed := res.Header["Content-Type"]; guessed || res.Header.Get("X-Odd_Name") != "kept" {
				t.Errorf("the client got the headers %v", res.Header)
			}
		})
	}
}

func TestForwardedHeadersNameClient(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip", "Forwarded",
			"X-Forwarded-Prefix", "X-Scheme", "X-Original-Forwarded-For", "X_forwarded_for", "Connection", "Te", "Upgrade", "Http2-Settings", "X-Mine", "Keep-Alive"} {
			if v, ok := r.Header[textproto.CanonicalMIMEHeaderKey(name)]; ok {
				fmt.Fprintf(w, "%s=%s\n", name, strings.Join(v, "|"))
			}
		}
	})
	request := "GET / HTTP/1.1\r\nHost: a.example:81\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 127.0.0.9\r\nX-Forwarded-Proto: https\r\n" +
		"X-Forwarded-Prefix: /p\r\nX-Scheme: https\r\nX-Original-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nX_Forwarded_For: 1.1.1.1\r\nTE: trailers, gzip\r\n" +
		"Connection: close, X-Forwarded-For, X-Real-IP, X-Mine, Upgrade\r\nX-Mine: 1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" +
		"Keep-Alive: timeout=5\r\n\r\n"
	for _, c := range []struct {
		name, want string
		settings   table.Settings
	}{
		{"untrusted", "X-Forwarded-For=127.0.0.1\nX-Forwarded-Proto=http\nX-Forwarded-Host=a.example:81\nX-Forwarded-Port=80\nX-Real-Ip=127.0.0.1\nTe=trailers\n",
			table.Settings{}},
		{"trusted", "X-Forwarded-For=1.1.1.1, 127.0.0.9, 127.0.0.1\nX-Forwarded-Proto=https\nX-Forwarded-Host=a.example:81\nX-Forwarded-Port=443\n" +
			"X-Real-Ip=1.1.1.1\nForwarded=for=1.1.1.1\nX-Forwarded-Prefix=/p\nX-Scheme=https\nX-Original-Forwarded-For=1.1.1.1\nTe=trailers\n", table.Settings{TrustedProxies: []string{"127.0.0.0/8"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{}, append(site(t, "", backend), section(t, table.KindSettings, c.settings))...)
			_, got, _ := strings.Cut(exchangeRaw(t, f.http, request), "\r\n\r\n")
			testenv.Equal(t, got, c.want, "the backend saw:")
		})
	}
}

func TestAnswersOfTheProxy(t *testing.T) {
	changes := site(t, "", closed(t))
	refused := routed("x", "/refused")
	refused.Routes[0].Refused = "secret reason"
	refused.Routes = append(refused.Routes, table.Route{Path: "/r", Kind: table.PathPrefix, RedirectHTTPS: 308},
		table.Route{Path: "/empty", Kind: table.PathPrefix, Backends: []table.Backend{service("absent")}}, table.Route{Path: "/none", Kind: table.PathPrefix})
	f := newFixture(t, Options{}, append(changes, section(t, table.HostKey("s", "a.example"), refused))...)
	c := client(t, f.http, "http1")
	for path, want := range map[string]int{
		"/refused": 503, "/empty": 503, "/none": 503, "/other": 502, "/a/..%2fb": 400, "/r/x": 308,
	} {
		if status, text := get(t, c, "http://a.example"+path); status != want || strings.Contains(text, "secret") {
			t.Errorf("%s is answered with %d %q, want %d", path, status, text, want)
		}
	}
	testenv.False(t, f.Stats().DialFailures.Load() != 1, "%d dial failures, want one", f.Stats().DialFailures.Load())
	res := testenv.Must(c.Get("http://A.example:80/r//x?a=1;b"))(t)
	_ = body(t, res)
	testenv.Equal(t, res.Header.Get("Location"), "https://a.example/r/x?a=1;b", "redirected to")
	if status, _ := get(t, client(t, f.https, "http1"), "https://a.example/r/x"); status != 503 {
		t.Errorf("with TLS the redirect's route gives %d, want its 503", status)
	}
	f.Apply([]table.Change{{Key: table.HostKey("s", "")}})
	if status, _ := get(t, c, "http://a.example/other"); status != 404 {
		t.Errorf("a path without a route gives %d, want 404", status)
	}
	if got := exchangeRaw(t, f.http, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 405") {
		t.Errorf("CONNECT is answered with %q", got)
	}
}

func TestFailedConnectionsGoToAnotherEndpoint(t *testing.T) {
	for _, protocol := range []string{table.HTTP1, table.H2C} {
		backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
		f := newFixture(t, Options{}, site(t, protocol, closed(t), backend)...)
		c, began := client(t, f.http, "http1"), time.Now()
		for range 4 {
			res := testenv.Must(c.Post("http://a.example/", "text/plain", io.MultiReader(strings.NewReader("body"))))(t)
			if got := body(t, res); got != "body" || res.StatusCode != http.StatusOK {
				t.Errorf("%q: answered with %d %q", protocol, res.StatusCode, got)
			}
		}
		if n := f.Stats().DialFailures.Load(); n < 1 || n > 1+uint64(time.Since(began)/failurePause) {
			t.Errorf("%q: %d dial failures, want one: a failed endpoint is not tried again at once", protocol, n)
		}
	}
}

func TestUnresponsiveBackendTimesOut(t *testing.T) {
	const idle = standstill
	release := make(chan struct{})
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/silent":
			<-release
		case "/half":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-release
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(3 * idle):
			case <-release:
			}
			_, _ = io.WriteString(w, "event")
		default:
			_, _ = io.Copy(w, r.Body)
		}
	})
	f := newFixture(t, Options{IdleTimeout: idle}, site(t, "", backend)...)
	t.Cleanup(func() { close(release) })
	allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
		t.Parallel()
		if status, text := get(t, c, url+"/silent"); status != http.StatusGatewayTimeout {
			t.Errorf("a silent backend is answered with %d %q, want 504", status, text)
		}
		res := testenv.Must(c.Get(url + "/half"))(t)
		if text, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("a response that stops is read as whole: %q", text)
		}
		if status, text := get(t, c, url+"/events"); status != 200 || text != "event" {
			t.Errorf("events that come late give %d %q", status, text)
		}
		slow, pieces := io.Pipe()
		go func() {
			for range 6 { // together longer than idle
				<-time.After(idle / 4)
				_, _ = io.WriteString(pieces, "x")
			}
			_ = pieces.Close()
		}()
		res = testenv.Must(c.Post(url+"/", "text/plain", slow))(t)
		testenv.Equal(t, body(t, res), "xxxxxx", "a slow body came back as")
		never, stuck := io.Pipe()
		defer stuck.Close()
		res = testenv.Must(c.Post(url+"/", "text/plain", never))(t)
		if _ = body(t, res); res.StatusCode != http.StatusRequestTimeout {
			t.Errorf("a body that does not come is answered with %d, want 408", res.StatusCode)
		}
	})
}

func TestClientThatDoesNotReadIsCut(t *testing.T) {
	var mu sync.Mutex
	ends := map[string]chan struct{}{} // by path
	ended := func(path string) chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		if ends[path] == nil {
			ends[path] = make(chan struct{}, 1) // its only end
		}
		return ends[path]
	}
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.URL.Query().Get("type"))
		for piece := make([]byte, 64<<10); ; {
			if _, err := w.Write(piece); err != nil {
				break
			}
		}
		ended(r.URL.Path) <- struct{}{}
	})
	f := newFixture(t, Options{IdleTimeout: standstill}, site(t, "", backend)...)
	allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
		t.Parallel()
		for _, kind := range []string{"text/plain", "text/event-stream"} {
			path := "/" + t.Name() + "/" + kind
			res := testenv.Must(c.Get(url + path + "?type=" + kind))(t)
			<-ended(path)
			_ = res.Body.Close()
		}
	})
}

func TestResponseBeforeTheEndOfTheBodyArrives(t *testing.T) {
	for protocol, backend := range map[string]string{
		table.HTTP1: rawBackend(t), // answers after the header, which net/http does not
		table.H2C:   backendServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Hello, world!") }),
	} {
		f := newFixture(t, Options{}, site(t, protocol, backend)...)
		allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
			never, stuck := io.Pipe()
			defer stuck.Close()
			go func() { _, _ = stuck.Write(make([]byte, 1<<10)) }()
			res := testenv.Must(c.Post(url, "text/plain", never))(t)
			if text := body(t, res); res.StatusCode != http.StatusOK || text != "Hello, world!" {
				t.Errorf("answered with %d %q", res.StatusCode, text)
			}
		})
	}
}

func TestBothBodiesStreamAtOnce(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		ctl := http.NewResponseController(w)
		_ = ctl.EnableFullDuplex()
		_ = ctl.Flush()
		for piece := make([]byte, 4); ; {
			if _, err := io.ReadFull(r.Body, piece); err != nil {
				return
			}
			_, _ = w.Write(piece)
			_ = ctl.Flush()
		}
	})
	for _, protocol := range []string{table.HTTP1, table.H2C} {
		f := newFixture(t, Options{}, site(t, protocol, backend)...)
		allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
			up, pieces := io.Pipe()
			res := testenv.Must(c.Post(url, "text/plain", up))(t)
			defer res.Body.Close()
			for i := range 3 {
				piece := fmt.Sprintf("%04d", i)
				_, _ = io.WriteString(pieces, piece)
				expect(t, res.Body, piece)
			}
			_ = pieces.Close()
			testenv.Equal(t, len(testenv.Must(io.ReadAll(res.Body))(t)), 0, "after the end of the request:")
		})
	}
}

func TestTrailersAndInformationalResponsesPass(t *testing.T) {
	for _, protocol := range []string{table.HTTP1, table.H2C} {
		backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("X-Sum", r.Trailer.Get("X-Request-Sum")+r.Trailer.Get("X-Real-Ip"))
		})
		f := newFixture(t, Options{}, site(t, protocol, backend)...)
		allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
			hints := ""
			ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints += fmt.Sprint(code, h.Get("Link"))
				return nil
			}})
			req := testenv.Must(http.NewRequestWithContext(ctx, http.MethodPost, url, io.MultiReader(strings.NewReader("body"))))(t)
			req.Trailer = http.Header{"X-Request-Sum": {"42"}, "X-Real-Ip": {"1.1.1.1"}}
			res := testenv.Must(c.Do(req))(t)
			text := body(t, res)
			if text != "body" || res.Trailer.Get("X-Sum") != "42" || hints != "103</style.css>" || res.Header.Get("Link") != "" {
				t.Errorf("got %q, trailers %v, informational %q, headers %v", text, res.Trailer, hints, res.Header)
			}
		})
	}
}

func TestExpectContinueAsksTheBackend(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		_, _ = io.Copy(w, r.Body)
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	head := "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
	if got := exchangeRaw(t, f.http, fmt.Sprintf(head, "/no")); !strings.HasPrefix(got, "HTTP/1.1 417") {
		t.Errorf("a refused expectation is answered with %q", got)
	}
	got := exchangeRaw(t, f.http, fmt.Sprintf(head, "/")+"body")
	if !strings.HasPrefix(got, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200") || !strings.HasSuffix(got, "body") {
		t.Errorf("an expectation is answered with %q", got)
	}
}

func TestEachPieceOfAResponseIsSentAtOnce(t *testing.T) {
	next := make(chan struct{})
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			_, _ = io.WriteString(w, "piece")
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
		res := testenv.Must(c.Get(url))(t)
		defer res.Body.Close()
		for range 3 {
			var piece [5]byte
			if _, err := io.ReadFull(res.Body, piece[:]); err != nil || string(piece[:]) != "piece" {
				t.Fatalf("read %q, %v", piece, err)
			}
			next <- struct{}{}
		}
	})
}

func TestCertificatesAreChosenByServerName(t *testing.T) {
	exact, wild := pemCertificate(t), pemCertificate(t)
	f := newFixture(t, Options{},
		section(t, table.CertificateKey("n", "exact"), exact), section(t, table.CertificateKey("n", "wild"), wild),
		section(t, table.HostKey("s", "a.example.org"), table.Host{Certificate: table.CertificateKey("n", "exact")}),
		section(t, table.HostKey("s", "*.example.org"), table.Host{Certificate: table.CertificateKey("n", "wild")}),
		section(t, table.HostKey("s", "none.example.org"), table.Host{}))
	served := func(name string) string {
		conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: name, InsecureSkipVerify: true}))(t)
		defer conn.Close()
		return string(conn.ConnectionState().PeerCertificates[0].Raw)
	}
	raw := func(c table.Certificate) string {
		pair := testenv.Must(tls.X509KeyPair([]byte(c.Chain), []byte(c.Key)))(t)
		return string(pair.Certificate[0])
	}
	own := string(f.fallbackCert.Certificate[0])
	for name, want := range map[string]string{
		"a.example.org": raw(exact), "A.Example.org": raw(exact), "b.example.org": raw(wild), "a.b.example.org": own, "none.example.org": own, "": own,
	} {
		testenv.True(t, served(name) == want, "%q gets another certificate", name)
	}
	renewed := pemCertificate(t)
	f.Apply([]table.Change{section(t, table.CertificateKey("n", "exact"), renewed)})
	testenv.Equal(t, served("a.example.org"), raw(renewed), "the renewed certificate is not served:")
	testenv.Fails(t, testenv.Err(tls.Dial("tcp", f.https, &tls.Config{MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true})), "TLS 1.1 is served")
}

func TestDrainWaitsForRequests(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	answered := make(chan string, 1)
	c := client(t, f.http, "http1")
	go func() {
		res, err := c.Get("http://a.example/")
		if err != nil {
			answered <- err.Error()
			return
		}
		text, err := io.ReadAll(res.Body)
		answered <- fmt.Sprint(string(text), err)
	}()
	<-arrived
	stopped := make(chan struct{})
	go func() { f.stop(); close(stopped) }()
	for { // until the listener refuses
		conn, err := net.Dial("tcp", f.http)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(release)
	testenv.Equal(t, <-answered, "done<nil>", "the request that was under way ended with")
	<-stopped
}

func TestPanicEndsOneRequestOnly(t *testing.T) {
	f := newFixture(t, Options{}, site(t, "", "10.0.0.1:80")...)
	good := f.current.Load()
	f.current.Store(&routing{sites: map[string]*siteRoutes{"s": {hosts: map[string]*host{"": {routes: []*route{nil}}}}}})
	c := client(t, f.http, "http1")
	if status, _ := get(t, c, "http://a/"); status != http.StatusInternalServerError {
		t.Errorf("a panic is answered with %d", status)
	}
	f.current.Store(good)
	testenv.Equal(t, f.Stats().Panics.Load(), 1, "panics counted:")
	if n := f.Stats().Requests[5].Load(); n != 1 {
		t.Errorf("%d answers of the class 5xx counted, want one", n)
	}
}

func TestBrokenResponseIsSeenAsBroken(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "part")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	allProtocols(t, f, func(t *testing.T, c *http.Client, url string) {
		res, err := c.Get(url)
		if err != nil {
			return // seen as well
		}
		defer res.Body.Close()
		if text, err := io.ReadAll(res.Body); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("read %q, %v", text, err)
		}
	})
}

// TestEndOfConnectionIsAnnounced: after an answer that comes before much of a request's body the connection ends, and
// the client learns it in time.
func TestEndOfConnectionIsAnnounced(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // or net/http would wait for the body
		w.Header().Set("Connection", "close")                // with full duplex it ends some connections without a word
		_, _ = io.WriteString(w, "early")
		_ = http.NewResponseController(w).Flush()
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	for request, want := range map[string]bool{
		"Content-Length: 8388608\r\n\r\nx": true, "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n": true, "Content-Length: 1\r\n\r\nx": false, "\r\n": false,
	} {
		conn := testenv.Must(net.Dial("tcp", f.http))(t)
		defer conn.Close()
		testenv.Must(io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\n"+request))(t)
		res := testenv.Must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
		if res.StatusCode != http.StatusOK || res.Close != want {
			t.Errorf("%q: %s, and the end of the connection is announced: %v", request, res.Status, res.Close)
		}
	}
}
