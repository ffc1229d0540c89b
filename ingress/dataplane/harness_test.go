// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fixture is a proxy with one site on two loopback sockets.
type fixture struct {
	*Proxy
	http, https, http3 string // addresses
	stop               func() // drains and waits
}

const (
	// standstill is longer than a busy machine stands still. No limit on silence that a test has pass, or not pass, is
	// shorter.
	standstill = 3 * time.Second
	// patience is for what has to happen.
	patience = 2 * time.Minute
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newFixture(t testing.TB, o Options, changes ...table.Change) *fixture {
	t.Helper()
	return newFixtureAt(t, o, [2]string{"s", "s"}, changes...)
}

// newFixtureAt serves one site without TLS and one with it.
func newFixtureAt(t testing.TB, o Options, sites [2]string, changes ...table.Change) *fixture {
	t.Helper()
	return serve(t, newProxy(t, o), sites, changes...)
}

// newFixtureOfMemory is newFixture with a limit of memory and a measure of what is used of it, both in bytes.
func newFixtureOfMemory(t testing.TB, o Options, most int64, used func() int64, changes ...table.Change) *fixture {
	t.Helper()
	p := newProxy(t, o)
	p.limits.memory.limit, p.limits.memory.read, p.limits.memory.collect = most, used, func() {} // before anything serves
	return serve(t, p, [2]string{"s", "s"}, changes...)
}

// newProxy gives clients and backends more time for what takes seconds at most otherwise.
func newProxy(t testing.TB, o Options) *Proxy {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet()
	}
	o.HeaderTimeout, o.DialTimeout = patience, patience
	o.Refuse = func(netip.Addr) bool { return false } // backends of tests are on loopback
	p := testenv.Must(New(o))(t)
	p.comparisons.wait = patience
	return p
}

// serve serves the sites until the test ends.
func serve(t testing.TB, p *Proxy, sites [2]string, changes ...table.Change) *fixture {
	t.Helper()
	if problems := p.Apply(changes); len(problems) > 0 {
		t.Fatalf("the table has problems: %v", problems)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &fixture{Proxy: p}
	ended := make(chan error, 3)
	for _, secure := range []bool{false, true} {
		l := listen(t)
		if secure {
			f.https = l.Addr().String()
		} else {
			f.http = l.Addr().String()
		}
		site := sites[0]
		if secure {
			site = sites[1]
		}
		go func() { ended <- p.Serve(ctx, site, secure, l) }()
	}
	udp := listenUDP(t)
	f.http3 = udp.LocalAddr().String()
	go func() { ended <- p.ServeHTTP3(ctx, "s", udp) }()
	stopped := false
	f.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 3 {
			testenv.Check(t, <-ended, "Serve")
		}
		p.upstream.http1.CloseIdleConnections()
		p.upstream.h2c.CloseIdleConnections()
	}
	t.Cleanup(f.stop)
	// Until then HTTP/3 is not announced.
	p.mu.Lock()
	sockets := &objectOf(p.alternatives, "s").sockets
	p.mu.Unlock()
	waitUntil(t, "HTTP/3 is served", func() bool { return sockets.Load() > 0 })
	return f
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// closed is an address at which no process listens until the test ends.
func closed(t testing.TB) string {
	t.Helper()
	return testenv.Address(t, "127.0.0.1:0")
}

// accepting serves each connection in a goroutine of its own until the test ends, and returns the address.
func accepting(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l := listen(t)
	go testenv.Accept(l, func(conn net.Conn) { go serve(conn) })
	return l.Addr().String()
}

func waitUntil(t testing.TB, what string, met func() bool) {
	t.Helper()
	testenv.Until(t, patience, what, met)
}

func listenUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	conn := testenv.Must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// section is one change.
func section(t testing.TB, key string, value any) table.Change {
	t.Helper()
	text := testenv.Must(json.Marshal(value))(t)
	return table.Change{Key: key, Value: text}
}

// service is a backend by the name of its Service.
func service(name string) table.Backend {
	return table.Backend{Namespace: "n", Service: name, Port: "80"}
}

// site is a table of one default host that sends all to the given endpoints.
func site(t testing.TB, protocol string, endpoints ...string) []table.Change {
	t.Helper()
	b := service("b")
	b.Protocol = protocol
	return []table.Change{
		section(t, table.HostKey("s", ""), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix, Backends: []table.Backend{b}}}}),
		section(t, b.Key(), table.Endpoints{Addresses: endpoints}),
	}
}

// backendServer runs a handler over HTTP/1.1 and h2c and returns its address.
func backendServer(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// client makes an HTTP client of one protocol that goes to address whatever the URL's host.
func client(t testing.TB, address, protocol string) *http.Client {
	t.Helper()
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if protocol == "h3" {
		tr := &http3.Transport{
			Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
				q = q.Clone()
				q.HandshakeIdleTimeout = patience
				return quic.DialAddr(ctx, address, c, q)
			},
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true,
		}
		t.Cleanup(func() { _ = tr.Close() })
		return &http.Client{Transport: tr, CheckRedirect: stay}
	}
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true, Protocols: new(http.Protocols),
	}
	switch protocol {
	case "http1":
		tr.Protocols.SetHTTP1(true)
	case "h2":
		tr.Protocols.SetHTTP2(true)
	case "h2c":
		tr.Protocols.SetUnencryptedHTTP2(true)
	default:
		t.Fatalf("no protocol %q", protocol)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: stay}
}

// get sends a GET and returns status and body.
func get(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	res := testenv.Must(c.Get(url))(t)
	return res.StatusCode, body(t, res)
}

func body(t testing.TB, res *http.Response) string {
	t.Helper()
	defer res.Body.Close()
	text := testenv.Must(io.ReadAll(res.Body))(t)
	return strings.TrimSpace(string(text))
}

// pemCertificate is a self-signed certificate as a section holds it.
func pemCertificate(t testing.TB) table.Certificate {
	t.Helper()
	own := testenv.Must(ownCertificate(time.Now()))(t)
	key := testenv.Must(x509.MarshalPKCS8PrivateKey(own.PrivateKey))(t)
	return table.Certificate{
		Chain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]})),
		Key:   string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	}
}

// exchangeRaw sends bytes to address and returns all that comes back until the connection ends.
func exchangeRaw(t testing.TB, address, request string) string {
	t.Helper()
	conn := testenv.Must(net.Dial("tcp", address))(t)
	defer conn.Close()
	testenv.Must(io.WriteString(conn, request))(t)
	text, _ := io.ReadAll(conn) // a reset after the answer is no matter
	return string(text)
}

// routeOf is the route of a GET; nil for none.
func routeOf(p *Proxy, site, host, path string) *route {
	s := p.current.Load().sites[site]
	if s == nil {
		return nil
	}
	in := httptest.NewRequest(http.MethodGet, "http://h/", nil)
	r, _ := s.route(host, path, in, &steps{remaining: expression.MaxRequest, freeLeft: expression.MaxRequest})
	return r
}

// hostOf is the host of exactly that name; nil for none.
func hostOf(p *Proxy, site, name string) *host {
	s := p.current.Load().sites[site]
	if s == nil {
		return nil
	}
	return s.hosts[name]
}
