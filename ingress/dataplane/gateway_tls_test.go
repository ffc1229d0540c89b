// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// authority signs certificates in tests.
type authority struct {
	*testca.Authority
	t testing.TB
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	ca := testenv.Must(testca.New(filepath.Join(t.TempDir(), name)))(t)
	return &authority{ca, t}
}

func (a *authority) read(file string) string {
	a.t.Helper()
	text := testenv.Must(os.ReadFile(file))(a.t)
	return string(text)
}

// section is the authority as a table holds it.
func (a *authority) section() table.Authorities {
	return table.Authorities{Certificates: a.read(a.File())}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM([]byte(a.read(a.File())))
	return p
}

// issue signs a certificate for DNS names and URIs, which servers and clients can use.
func (a *authority) issue(names ...string) table.Certificate {
	a.t.Helper()
	f := testenv.Must(a.Issue(names[0], names...))(a.t)
	return table.Certificate{Chain: a.read(f.Cert), Key: a.read(f.Key)}
}

func pair(t testing.TB, c table.Certificate) tls.Certificate {
	t.Helper()
	return testenv.Must(tls.X509KeyPair([]byte(c.Chain), []byte(c.Key)))(t)
}

// asks is a client of the fixture's TLS socket that names a host in its handshake; certificate may be nil.
func (f *fixture) asks(t testing.TB, protocol, server string, certificate *tls.Certificate) *http.Client {
	t.Helper()
	c := client(t, f.https, protocol)
	config := c.Transport.(*http.Transport).TLSClientConfig
	config.ServerName = server
	if certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	c.Timeout = patience
	return c
}

func TestClientsNeedCertificates(t *testing.T) {
	good, bad := newAuthority(t, "good"), newAuthority(t, "bad")
	friend, untrusted := pair(t, good.issue("client")), pair(t, bad.issue("client"))
	key := table.AuthoritiesKey("configmap", "n", "good")
	site := table.Site{TLS: true, ClientAuthorities: key}
	f := newFixture(t, Options{}, append(hostWith(t, table.Route{Backends: to("b")}),
		section(t, table.SiteKey("s"), site), section(t, key, good.section()))...)
	try := func(certificate *tls.Certificate) error {
		for _, protocol := range []string{"http1", "h2"} {
			res, err := f.asks(t, protocol, "a", certificate).Get("https://a/")
			if err != nil {
				return err
			}
			testenv.Equal(t, body(t, res), "b /", "the answer is")
		}
		return nil
	}
	expect := func(when string, certificate *tls.Certificate, in bool) {
		t.Helper()
		testenv.Equal(t, (try(certificate) == nil), in, "%s:", when)
	}
	expect("a signed certificate", &friend, true)
	expect("another authority's certificate", &untrusted, false)
	expect("no certificate", nil, false)

	if problems := f.Apply([]table.Change{{Key: key}}); problems[table.SiteKey("s")] == "" {
		t.Errorf("absent authorities are no problem: %v", problems)
	}
	expect("absent authorities", &friend, false)
	f.Apply([]table.Change{section(t, key, bad.section())})
	expect("the certificate of an authority that was replaced", &friend, false)
	expect("a certificate of the new authority", &untrusted, true)

	site.ClientOptional = true
	f.Apply([]table.Change{section(t, table.SiteKey("s"), site)})
	expect("optional and no certificate", nil, true)
	expect("optional and another authority's certificate", &friend, true)

	if problems := f.Apply([]table.Change{{Key: table.SiteKey("s"), Value: []byte(`{"nodePort":1,"tls":true,"future":true}`)}}); problems[table.SiteKey("s")] == "" {
		t.Errorf("a field that is not known is no problem: %v", problems)
	}
	expect("a site that cannot be read", &untrusted, false)
	exchanged{url: "http://a/", status: 503}.check(t, f)
}

func TestMisdirectedRequestsAreRefused(t *testing.T) {
	host := func(name, backend string, deep bool) table.Change {
		h := table.Host{Final: true, AnyDepth: deep}
		if backend != "" {
			h.Routes = []table.Route{{Path: "/", Kind: table.PathPrefix, Object: "httproute/n/r", Backends: to(backend)}}
		}
		return section(t, table.HostKey("s", name), h)
	}
	f := newFixture(t, Options{}, withEchoes(t,
		section(t, table.SiteKey("s"), table.Site{TLS: true, Listeners: []string{"", "second-example.org", "*.wildcard.org", "fourth-example.wildcard.org"}}),
		host("example.org", "v1", false), host("second-example.org", "v2", false), host("*.wildcard.org", "v3", true), host("fourth-example.wildcard.org", "v4", false))...)
	for _, c := range []struct {
		server, host string
		status       int
	}{
		{"example.org", "example.org", 200},
		{"example.org", "second-example.org", 421},
		{"example.org", "unknown-example.org", 404},
		{"second-example.org", "second-example.org", 200},
		{"second-example.org", "example.org", 421},
		{"second-example.org", "unknown-example.org", 421},
		{"third-example.wildcard.org", "third-example.wildcard.org", 200},
		{"third-example.wildcard.org", "a.fifth-example.wildcard.org", 200},
		{"third-example.wildcard.org", "fourth-example.wildcard.org", 421},
		{"third-example.wildcard.org", "second-example.org", 421},
		{"third-example.wildcard.org", "unknown-example.org", 421},
		{"fourth-example.wildcard.org", "fourth-example.wildcard.org", 200},
		{"fourth-example.wildcard.org", "fifth-example.wildcard.org", 421},
		{"unknown-example.org", "example.org", 200},
		{"unknown-example.org", "unknown-example.org", 404},
	} {
		req := httptest.NewRequest(http.MethodGet, "https://"+c.host+"/", nil)
		req.RequestURI = ""
		res := testenv.Must(f.asks(t, "h2", c.server, nil).Do(req))(t)
		if text := body(t, res); res.StatusCode != c.status {
			t.Errorf("%s by a connection to %s: %d %q, want %d", c.host, c.server, res.StatusCode, text, c.status)
		}
	}
	f.Apply([]table.Change{section(t, table.SiteKey("s"), table.Site{TLS: true, Listeners: []string{"*.wildcard.org"}})})
	testenv.ErrorIs(t, testenv.Err(f.asks(t, "http1", "example.org", nil).Get("https://example.org/")), io.EOF, "a handshake for a name of no listener")
	testenv.Check(t, testenv.Err(f.asks(t, "http1", "x.wildcard.org", nil).Get("https://x.wildcard.org/")), "a handshake for a listener's name")
}

// tlsEcho accepts TLS connections with a certificate for "backend", sends its name and what it gets, and says so when a
// client has ended its direction.
func tlsEcho(t testing.TB, config *tls.Config) string {
	t.Helper()
	if config == nil {
		config = &tls.Config{Certificates: []tls.Certificate{pair(t, newAuthority(t, "backends").issue("backend"))}}
	}
	return accepting(t, func(conn net.Conn) { echoEnd(tls.Server(conn, config)) })
}

// echoEnd sends back what comes, and "end" after the end.
func echoEnd(conn net.Conn) {
	defer conn.Close()
	if _, err := io.Copy(conn, conn); err == nil {
		_, _ = io.WriteString(conn, "end")
	}
}

// converse sends a text on a connection, ends its direction, and returns what comes back.
func converse(t testing.TB, conn net.Conn, text string) (string, error) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return string(got), err
}

func TestStreamsPassTLSThrough(t *testing.T) {
	b := service("b")
	f := newFixture(t, Options{}, append(hostWith(t, table.Route{Backends: to("web")}),
		section(t, table.HostKey("s", "tls.example"), table.Host{Stream: &table.Stream{Backends: []table.Backend{b}}}),
		section(t, table.HostKey("s", "none.example"), table.Host{Stream: &table.Stream{Backends: []table.Backend{{Invalid: "none"}}}}),
		section(t, b.Key(), table.Endpoints{Addresses: []string{tlsEcho(t, nil)}}))...)
	large := strings.Repeat("some text ", 100_000)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conn := testenv.Must(
			tls.Dial("tcp", f.https, &tls.Config{ServerName: "tls.example", InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}))(t)
		defer conn.Close()
		testenv.Equal(t, conn.ConnectionState().PeerCertificates[0].Subject.CommonName, "backend", "the certificate is that of")
		testenv.Equal(t, f.Stats().Tunnels.Load(), 1, "tunnels are counted:")
		go func() { _, _ = io.WriteString(conn, large); _ = conn.CloseWrite() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(conn); err != nil || string(got) != large+"end" {
			t.Errorf("%d of %d bytes came back, %v", len(got), len(large)+3, err)
		}
		_ = conn.Close()
		waitUntil(t, "the tunnel ends", func() bool { return f.Stats().Tunnels.Load() == 0 })
	}
	testenv.Fails(t, testenv.Err(tls.Dial("tcp", f.https, &tls.Config{ServerName: "none.example", InsecureSkipVerify: true})), "a stream without a backend is taken")
	if got, err := f.asks(t, "h2", "web.example", nil).Get("https://web.example/"); err != nil || body(t, got) != "web /" {
		t.Errorf("another host of the port is not served: %v", err)
	}
	exchanged{url: "http://tls.example/", status: 404}.check(t, f)
	f.stop()
	testenv.Equal(t, f.Stats().Connections.Load(), 0, "connections are left:")
}

// TestStreamsBeginWithTheWholeHello sends the first message in pieces, with bytes of the next one beside it.
func TestStreamsBeginWithTheWholeHello(t *testing.T) {
	l := listen(t)
	b := service("b")
	f := newFixture(t, Options{},
		section(t, table.HostKey("s", "*.example"), table.Host{AnyDepth: true, Stream: &table.Stream{Backends: []table.Backend{b}}}),
		section(t, b.Key(), table.Endpoints{Addresses: []string{l.Addr().String()}}))
	var hello bytes.Buffer
	recorder := tls.Client(&recording{to: &hello}, &tls.Config{ServerName: "a.b.example"})
	_ = recorder.Handshake() // fails without an answer
	testenv.Require(t, hello.Len() >= 100, "the first message has %d bytes", hello.Len())
	conn := testenv.Must(net.Dial("tcp", f.https))(t)
	defer conn.Close()
	sent := hello.String() + "what follows"
	for _, piece := range []string{sent[:3], sent[3:60], sent[60 : len(sent)-20], sent[len(sent)-20:]} {
		testenv.Must(io.WriteString(conn, piece))(t)
		time.Sleep(10 * time.Millisecond) // so that pieces come by themselves; nothing fails without it
	}
	backend := testenv.Must(l.Accept())(t)
	defer backend.Close()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(backend, got); err != nil || string(got) != sent {
		t.Errorf("the backend does not get what the client sent: %v", err)
	}
	// The proxy adds nothing of its own, such as an alert.
	testenv.Must(io.WriteString(backend, "answer"))(t)
	expect(t, conn, "answer")
}

// recording is a connection that ends after what is written to it.
type recording struct {
	net.Conn
	to *bytes.Buffer
}

func (r *recording) Write(p []byte) (int, error)      { return r.to.Write(p) }
func (r *recording) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recording) Close() error                     { return nil }
func (r *recording) SetDeadline(time.Time) error      { return nil }
func (r *recording) SetReadDeadline(time.Time) error  { return nil }
func (r *recording) SetWriteDeadline(time.Time) error { return nil }

func TestStreamsEndTLS(t *testing.T) {
	ownCA, foreignCA := newAuthority(t, "ours"), newAuthority(t, "theirs")
	certificate, authorities := table.CertificateKey("n", "c"), table.AuthoritiesKey("configmap", "n", "a")
	plain, secured, wrong := service("plain"), service("secured"), service("wrong")
	secured.TLS = &table.BackendTLS{ServerName: "backend", Authorities: authorities}
	wrong.TLS = &table.BackendTLS{ServerName: "other", Authorities: authorities}
	over := tlsEcho(t, &tls.Config{Certificates: []tls.Certificate{pair(t, foreignCA.issue("backend"))}})
	host := func(name string, b table.Backend) table.Change {
		return section(t, table.HostKey("s", name), table.Host{Certificate: certificate, Stream: &table.Stream{Terminate: true, Backends: []table.Backend{b}}})
	}
	f := newFixture(t, Options{}, host("plain.example", plain), host("secured.example", secured), host("wrong.example", wrong),
		section(t, certificate, ownCA.issue("plain.example", "secured.example", "wrong.example")), section(t, authorities, foreignCA.section()),
		section(t, plain.Key(), table.Endpoints{Addresses: []string{accepting(t, echoEnd)}}),
		section(t, secured.Key(), table.Endpoints{Addresses: []string{over}}), section(t, wrong.Key(), table.Endpoints{Addresses: []string{over}}))
	roots := ownCA.pool()
	for name, want := range map[string]string{"plain.example": "helloend", "secured.example": "helloend", "wrong.example": ""} {
		conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: name, RootCAs: roots}))(t)
		if got, err := converse(t, conn, "hello"); got != want || err != nil && want != "" {
			t.Errorf("%s answers %q, %v", name, got, err)
		}
		_ = conn.Close()
	}
	good := newAuthority(t, "clients")
	key := table.AuthoritiesKey("configmap", "n", "clients")
	f.Apply([]table.Change{section(t, table.SiteKey("s"), table.Site{TLS: true, ClientAuthorities: key}), section(t, key, good.section())})
	friend := pair(t, good.issue("client"))
	for _, with := range [][]tls.Certificate{nil, {friend}} {
		conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: "plain.example", RootCAs: roots, Certificates: with}))(t)
		got, _ := converse(t, conn, "hello")
		testenv.True(t, (got == "helloend") == (with != nil), "with %d certificates the answer is %q", len(with), got)
		_ = conn.Close()
	}
}

func TestStreamsAreBoundedAndDrained(t *testing.T) {
	b := service("b")
	f := newFixture(t, Options{MaxConnections: 4, DrainTimeout: time.Second},
		section(t, table.HostKey("s", ""), table.Host{Stream: &table.Stream{Backends: []table.Backend{b}}}),
		section(t, b.Key(), table.Endpoints{Addresses: []string{tlsEcho(t, nil)}}))
	var open []*tls.Conn
	for range 2 { // half of all, which one source may have
		conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: "a", InsecureSkipVerify: true}))(t)
		defer conn.Close()
		open = append(open, conn)
	}
	testenv.Fails(t, testenv.Err(tls.Dial("tcp", f.https, &tls.Config{ServerName: "a", InsecureSkipVerify: true})), "a third connection is taken")
	_ = open[0].Close()
	waitUntil(t, "a connection may be made again", func() bool {
		conn, err := tls.Dial("tcp", f.https, &tls.Config{ServerName: "a", InsecureSkipVerify: true})
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	f.stop() // must not wait for the client
	_ = open[1].SetReadDeadline(time.Now().Add(patience))
	if _, err := open[1].Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("a stream is left after the drain: %v", err)
	}
}

// secureBackend is an HTTP server with a certificate that says for which name the client asked, its protocol and the
// client's certificate.
func secureBackend(t testing.TB, config *tls.Config) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			by = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		if r.Header.Get("Upgrade") == "websocket" {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			echo(rw.Reader, conn)
			return
		}
		fmt.Fprintf(w, "%s to %s by HTTP/%d", by, r.TLS.ServerName, r.ProtoMajor)
	}))
	s.TLS, s.EnableHTTP2 = config, true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestBackendsCertificatesAreVerified(t *testing.T) {
	good, other, own := newAuthority(t, "good"), newAuthority(t, "other"), newAuthority(t, "own")
	goodKey, otherKey := table.AuthoritiesKey("configmap", "n", "good"), table.AuthoritiesKey("configmap", "n", "other")
	absentKey, certificate := table.AuthoritiesKey("configmap", "n", "absent"), table.CertificateKey("n", "own")
	clients := own.pool()
	address := secureBackend(t, &tls.Config{
		Certificates: []tls.Certificate{pair(t, good.issue("abc.example.com", "spiffe://cluster/ns/a"))},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: clients,
	})
	cases := []struct {
		name, protocol string
		tls            *table.BackendTLS
		want           string // empty for 502
	}{
		{"unverified", table.HTTPS1, nil, "nobody to  by HTTP/1"},
		{"verified", table.HTTPS1, &table.BackendTLS{ServerName: "abc.example.com", Authorities: goodKey}, "nobody to abc.example.com by HTTP/1"},
		{"http2", table.H2, &table.BackendTLS{ServerName: "abc.example.com", Authorities: goodKey}, "nobody to abc.example.com by HTTP/2"},
		{"othername", table.HTTPS1, &table.BackendTLS{ServerName: "xyz.example.com", Authorities: goodKey}, ""},
		{"otherca", table.HTTPS1, &table.BackendTLS{ServerName: "abc.example.com", Authorities: otherKey}, ""},
		{"absentca", table.H2, &table.BackendTLS{ServerName: "abc.example.com", Authorities: absentKey}, ""},
		{"system", table.HTTPS1, &table.BackendTLS{ServerName: "abc.example.com"}, ""},
		{"noname", table.HTTPS1, &table.BackendTLS{Authorities: goodKey}, ""},
		{"san", table.HTTPS1, &table.BackendTLS{ServerName: "sni.example", Names: []string{"x.y", "abc.example.com"}, Authorities: goodKey}, "nobody to sni.example by HTTP/1"},
		{"wildcard", table.HTTPS1, &table.BackendTLS{Names: []string{"*.example.com"}, Authorities: goodKey}, "nobody to  by HTTP/1"},
		{"uri", table.HTTPS1, &table.BackendTLS{ServerName: "sni.example", Names: []string{"spiffe://cluster/ns/a"}, Authorities: goodKey}, "nobody to sni.example by HTTP/1"},
		{"otheruri", table.HTTPS1, &table.BackendTLS{ServerName: "abc.example.com", Names: []string{"spiffe://cluster/ns/b"}, Authorities: goodKey}, ""},
		{"own", table.HTTPS1, &table.BackendTLS{ServerName: "abc.example.com", Authorities: goodKey, Certificate: certificate}, "proxy to abc.example.com by HTTP/1"},
		{"own2", table.H2, &table.BackendTLS{ServerName: "x", Unverified: true, Certificate: certificate}, "proxy to x by HTTP/2"},
		{"noown", table.HTTPS1, &table.BackendTLS{ServerName: "x", Unverified: true, Certificate: table.CertificateKey("n", "absent")}, ""},
	}
	changes := []table.Change{section(t, goodKey, good.section()), section(t, otherKey, other.section()), section(t, certificate, own.issue("proxy"))}
	var routes []table.Route
	for _, c := range cases {
		b := service(c.name)
		b.Protocol, b.TLS = c.protocol, c.tls
		routes = append(routes, table.Route{Path: "/" + c.name, Kind: table.PathExact, Backends: []table.Backend{b}})
		changes = append(changes, section(t, b.Key(), table.Endpoints{Addresses: []string{address}}))
	}
	f := newFixture(t, Options{}, append(hostWith(t, routes...), changes...)...)
	check := func(name, want string) {
		t.Helper()
		status := 200
		if want == "" {
			status = 502
		}
		exchanged{url: "http://a/" + name, status: status, body: want}.check(t, f)
	}
	for range 2 { // the second time by connections that are there
		for _, c := range cases {
			check(c.name, c.want)
			if status, _ := handshakeStatus(t, f, "/"+c.name); (status == 101) != (c.want != "") {
				t.Errorf("a websocket to %s is answered with %d", c.name, status)
			}
		}
	}
	f.Apply([]table.Change{section(t, goodKey, other.section()), section(t, absentKey, good.section())})
	check("verified", "")
	check("http2", "")
	check("absentca", "nobody to abc.example.com by HTTP/2")
	f.Apply([]table.Change{section(t, goodKey, good.section()), section(t, certificate, own.issue("another"))})
	check("verified", "nobody to abc.example.com by HTTP/1")
	check("own", "another to abc.example.com by HTTP/1")
	f.Apply([]table.Change{{Key: table.HostKey("s", "")}, {Key: goodKey}})
	if n := len(f.objects.tls) + len(f.objects.authorities); n != 2 { // those that have sections
		t.Errorf("%d clients and %d authorities are left", len(f.objects.tls), len(f.objects.authorities))
	}
}

// handshakeStatus asks for a websocket at a path and returns the answer's status.
func handshakeStatus(t testing.TB, f *fixture, path string) (int, string) {
	t.Helper()
	conn := testenv.Must(net.Dial("tcp", f.http))(t)
	defer conn.Close()
	testenv.Must(io.WriteString(conn, strings.Replace(handshake, "/ws", path, 1)))(t)
	res := testenv.Must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	return res.StatusCode, res.Header.Get("Upgrade")
}
