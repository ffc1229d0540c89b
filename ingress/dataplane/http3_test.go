// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// dialQUIC opens a connection without HTTP.
func dialQUIC(t *testing.T, address string) (*quic.Conn, error) {
	t.Helper()
	conn, err := quic.DialAddr(t.Context(), address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}},
		&quic.Config{HandshakeIdleTimeout: patience})
	if err == nil {
		t.Cleanup(func() { _ = conn.CloseWithError(0x100, "") })
	}
	return conn, err
}

func TestHTTP3IsAnnouncedWhileItIsServed(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Alt-Svc", "clear") // for all that has the host
		w.Header().Set("Link", "</x>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	altSvc := func(c *http.Client, url string) string {
		res := testenv.Must(c.Get(url))(t)
		_ = body(t, res)
		return res.Header.Get("Alt-Svc")
	}
	h1, h2 := client(t, f.https, "http1"), client(t, f.https, "h2")
	testenv.Equal(t, altSvc(h1, "https://a.example"), "", "before the table says so it is announced:")
	f.Apply([]table.Change{section(t, table.HTTP3Key("s"), table.HTTP3{Port: 8443})})
	for _, c := range []*http.Client{h1, h2} {
		testenv.Equal(t, altSvc(c, "https://a.example"), `h3=":8443"; ma=3600`, "it is announced as")
	}
	testenv.Equal(t, altSvc(client(t, f.http, "http1"), "http://a.example"), "", "without TLS it is announced:")
	f.Apply([]table.Change{section(t, table.HTTP3Key("another"), table.HTTP3{Port: 8443}), {Key: table.HTTP3Key("s")}})
	testenv.Equal(t, altSvc(h1, "https://a.example"), "", "when the table says so no more it is announced:")
}

// TestHTTP3EndsGracefully: a request that is under way is answered, the client opens no other on the connection, and
// the socket is closed.
func TestHTTP3EndsGracefully(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, "done")
	})
	p := newProxy(t, Options{})
	p.Apply(append(site(t, "", backend), section(t, table.HTTP3Key("s"), table.HTTP3{Port: 443})))
	udp := listenUDP(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.ServeHTTP3(ctx, "s", udp) }()
	c := client(t, udp.LocalAddr().String(), "h3")
	answer := make(chan string, 1)
	go func() {
		res, err := c.Get("https://a.example/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		answer <- string(text) + errorText(err)
	}()
	<-arrived
	cancel(ErrHandedOver)
	waitUntil(t, "it is announced no more", func() bool { return p.alternatives["s"].header() == nil })
	close(release)
	testenv.Equal(t, <-answer, "done", "the request that was under way ended with")
	testenv.Check(t, <-ended)
	waitUntil(t, "no connection is left and none counts", func() bool { // contexts end in goroutines of their own
		p.limits.connections.mu.Lock()
		defer p.limits.connections.mu.Unlock()
		return p.Stats().Connections.Load() == 0 && p.limits.connections.total == 0
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestHTTP3ConnectionsAreBounded: they count for the same limit as those of TCP, from their first packet on. Where none
// is idle, no further one is accepted.
func TestHTTP3ConnectionsAreBounded(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := backendServer(t, func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
	})
	f := newFixture(t, Options{MaxConnections: 4 * quicFraction}, site(t, "", backend)...) // half of its part for one source
	defer close(release)
	var held []*http.Client
	for range 2 {
		c := client(t, f.http3, "h3")
		held = append(held, c)
		go func() {
			if res, err := c.Get("https://a/"); err == nil {
				_ = res.Body.Close()
			}
		}()
		<-arrived
	}
	_, err := dialQUIC(t, f.http3)
	var refused *quic.TransportError
	testenv.False(t, !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused, "a connection beyond the limit: %v", err)
	f.limits.connections.mu.Lock()
	counted := f.limits.connections.total
	f.limits.connections.mu.Unlock()
	if counted != 2 || f.stats.Refused.Load() == 0 { // each packet counts of those that begin a connection
		t.Errorf("%d connections count, %d were refused", counted, f.stats.Refused.Load())
	}
	_ = held[0].Transport.(*http3.Transport).Close()
	waitUntil(t, "the limit has room again", func() bool {
		f.limits.connections.mu.Lock()
		defer f.limits.connections.mu.Unlock()
		return f.limits.connections.total == 1
	})
	testenv.Check(t, testenv.Err(dialQUIC(t, f.http3)))
	waitUntil(t, "no handshake is under way", func() bool { return f.handshakes.open.Load() == 0 })
}

// TestHTTP3ConnectionWithoutRequestsEnds: whatever streams the client opens.
func TestHTTP3ConnectionWithoutRequestsEnds(t *testing.T) {
	f := newFixture(t, Options{KeepAlive: standstill}) // the client has its connection by then
	conn := testenv.Must(dialQUIC(t, f.http3))(t)
	for range 3 {
		s, err := conn.OpenStream()
		if err != nil {
			break // it has ended
		}
		_, _ = s.Write([]byte{1, 50}) // of a header
	}
	<-conn.Context().Done()
	var closed *quic.ApplicationError
	if err := context.Cause(conn.Context()); !errors.As(err, &closed) || closed.ErrorCode != 0x100 {
		t.Errorf("it ended with %v", err)
	}
}

// TestHTTP3ClientsProveTheirAddressUnderLoad: and are served then.
func TestHTTP3ClientsProveTheirAddressUnderLoad(t *testing.T) {
	f := newFixture(t, Options{}, site(t, "", backendServer(t, func(http.ResponseWriter, *http.Request) {}))...)
	f.handshakes.open.Store(freeHandshakes)
	if status, _ := get(t, client(t, f.http3, "h3"), "https://a.example"); status != http.StatusOK {
		t.Errorf("answered with %d", status)
	}
	testenv.Equal(t, f.handshakes.open.Load(), freeHandshakes, "handshakes are under way:")
	// A client that does not answer takes no connection.
	conn := listenUDP(t)
	to := testenv.Must(net.ResolveUDPAddr("udp", f.http3))(t)
	testenv.Must(conn.WriteTo(initialPacket(t), to))(t)
	answer := make([]byte, 1500)
	n, err := conn.Read(answer)
	if err != nil || n < 7 || answer[0]&0xf0 != 0xf0 { // a long header of the type Retry
		t.Errorf("a first packet without a token is answered with %x, %v", answer[:n], err)
	}
}

// initialPacket is what a client of quic-go sends first.
func initialPacket(t *testing.T) []byte {
	t.Helper()
	l := listenUDP(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = quic.DialAddr(ctx, l.LocalAddr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, nil)
	}()
	packet := make([]byte, 1500)
	n := testenv.Must(l.Read(packet))(t)
	return packet[:n]
}

// TestManyConnectionsHaveFewStreams: the seventeenth connection of a source may have fewer requests at a time.
func TestManyConnectionsHaveFewStreams(t *testing.T) {
	f := newFixture(t, Options{})
	for i := range freeConnections + 1 {
		conn := testenv.Must(dialQUIC(t, f.http3))(t)
		streams := 0
		for ; ; streams++ {
			if _, err := conn.OpenStream(); err != nil {
				break
			}
		}
		want := quicStreams
		if i == freeConnections {
			want = fewStreams
		}
		testenv.True(t, streams == want, "connection %d may have %d requests at a time, want %d", i, streams, want)
	}
}

func TestHTTP3HeadersAreBounded(t *testing.T) {
	f := newFixture(t, Options{}, site(t, "", backendServer(t, func(http.ResponseWriter, *http.Request) {}))...)
	c := client(t, f.http3, "h3")
	req := testenv.Must(http.NewRequest(http.MethodGet, "https://a.example", nil))(t)
	req.Header.Set("X-Long", strings.Repeat("x", maxRequestHeader))
	if res, err := c.Do(req); err == nil {
		_ = res.Body.Close()
		testenv.Equal(t, res.StatusCode, http.StatusRequestHeaderFieldsTooLarge, "a header of %d bytes is answered with", maxRequestHeader)
	}
	if status, _ := get(t, c, "https://a.example"); status != http.StatusOK {
		t.Errorf("another request is answered with %d", status)
	}
}

// TestNoEarlyData: a session that is resumed sends no request before the handshake ends.
func TestNoEarlyData(t *testing.T) {
	f := newFixture(t, Options{}, site(t, "", backendServer(t, func(http.ResponseWriter, *http.Request) {}))...)
	sessions := tls.NewLRUClientSessionCache(1)
	for resumed := range 2 {
		var last *quic.Conn
		tr := &http3.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ClientSessionCache: sessions}, QUICConfig: &quic.Config{},
			Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (conn *quic.Conn, err error) {
				last, err = quic.DialAddrEarly(ctx, f.http3, c, q)
				return last, err
			},
		}
		if status, _ := get(t, &http.Client{Transport: tr}, "https://a.example"); status != http.StatusOK {
			t.Errorf("answered with %d", status)
		}
		if s := last.ConnectionState(); s.TLS.DidResume != (resumed == 1) || s.Used0RTT {
			t.Errorf("connection %d resumed: %t, with early data: %t", resumed, s.TLS.DidResume, s.Used0RTT)
		}
		waitUntil(t, "the client has the session", func() bool { _, ok := sessions.Get("a.example"); return ok })
		_ = tr.Close()
	}
}

// TestNextProcessEndsConnections: one with the same key tells clients of a process that was killed that their
// connections are gone.
func TestNextProcessEndsConnections(t *testing.T) {
	udp := listenUDP(t)
	raw, err := udp.File() // as the agent keeps it
	testenv.NoError(t, err)
	defer raw.Close()
	serve := func(conn *net.UDPConn) <-chan error {
		p := newProxy(t, Options{})
		p.Apply([]table.Change{section(t, table.HTTP3Key("s"), table.HTTP3{Key: []byte("secret")})})
		ended := make(chan error, 1)
		go func() { ended <- p.ServeHTTP3(t.Context(), "s", conn) }()
		return ended
	}
	first := serve(udp)
	conn := testenv.Must(dialQUIC(t, udp.LocalAddr().String()))(t)
	// With the server's first stream comes its confirmation of the handshake, before which QUIC resets nothing.
	testenv.Must(conn.AcceptUniStream(t.Context()))(t)
	_ = udp.Close() // the process says nothing to its clients
	testenv.Fails(t, <-first, "ServeHTTP3 has no error")
	next := testenv.Must(net.FilePacketConn(raw))(t)
	t.Cleanup(func() { _ = next.Close() })
	serve(next.(*net.UDPConn))
	s := testenv.Must(conn.OpenStream())(t)
	_, _ = s.Write(make([]byte, 1000))
	<-conn.Context().Done()
	var reset *quic.StatelessResetError
	if err := context.Cause(conn.Context()); !errors.As(err, &reset) {
		t.Errorf("the connection ended with %v", err)
	}
}

// TestTrustedProxyOfThePROXYProtocolHasNoHTTP3: UDP has no header of that protocol, and what any client says of itself
// would be trusted.
func TestTrustedProxyOfThePROXYProtocolHasNoHTTP3(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		f := newFixture(t, Options{}, section(t, table.KindSettings, table.Settings{TrustedProxies: []string{"127.0.0.0/8"}, ProxyProtocol: proxied}))
		_, err := dialQUIC(t, f.http3)
		var refused *quic.TransportError
		if is := errors.As(err, &refused) && refused.ErrorCode == quic.ConnectionRefused; is != proxied {
			t.Errorf("with the PROXY protocol %t: %v", proxied, err)
		}
	}
}

// TestHTTP3WithoutMemory: a connection that is open gets an answer, and another one is refused.
func TestHTTP3WithoutMemory(t *testing.T) {
	var used atomic.Int64
	p := newFixtureOfMemory(t, Options{}, 1600, used.Load, site(t, "", backendServer(t, func(http.ResponseWriter, *http.Request) {}))...)
	c := client(t, p.http3, "h3")
	if status, _ := get(t, c, "https://a.example"); status != http.StatusOK {
		t.Errorf("with memory it is answered with %d", status)
	}
	used.Store(2000)
	waitUntil(t, "no memory is left", func() bool { return p.limits.memory.exceeds(requestsRefused) })
	if status, _ := get(t, c, "https://a.example"); status != http.StatusServiceUnavailable {
		t.Errorf("without memory it is answered with %d", status)
	}
	_, err := dialQUIC(t, p.http3)
	var refused *quic.TransportError
	testenv.False(t, !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused, "a new connection without memory: %v", err)
}

// TestHTTP3ConnectionsAreShed: when memory is short, connections end on which much was sent, such as headers that do
// not end, and others are served.
func TestHTTP3ConnectionsAreShed(t *testing.T) {
	var used atomic.Int64
	p := newFixtureOfMemory(t, Options{}, 1600, used.Load, site(t, "", backendServer(t, func(http.ResponseWriter, *http.Request) {}))...)
	heavy := testenv.Must(dialQUIC(t, p.http3))(t)
	header := append(quicvarint.Append([]byte{1}, maxRequestHeader-1), make([]byte, maxRequestHeader-100)...)
	for range 3 {
		s := testenv.Must(heavy.OpenStream())(t)
		testenv.Must(s.Write(header))(t)
	}
	c := client(t, p.http3, "h3")
	if status, _ := get(t, c, "https://a.example"); status != http.StatusOK {
		t.Errorf("with memory it is answered with %d", status)
	}
	used.Store(1550)
	for heavy.Context().Err() == nil {
		if status, _ := get(t, c, "https://a.example"); status != http.StatusOK {
			t.Fatalf("with little memory it is answered with %d", status)
		}
	}
	var closed *quic.ApplicationError
	if err := context.Cause(heavy.Context()); !errors.As(err, &closed) || closed.ErrorCode != quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad) {
		t.Errorf("the connection ended with %v", err)
	}
	waitUntil(t, "the connection is forgotten", func() bool {
		p.limits.quic.mu.Lock()
		defer p.limits.quic.mu.Unlock()
		return len(p.limits.quicOpen) == 1
	})
}

// TestAnotherSocketEndsNoConnection: a packet of a connection that comes to another address of the node is not answered
// with the token that ends the connection.
func TestAnotherSocketEndsNoConnection(t *testing.T) {
	p := newProxy(t, Options{})
	p.Apply([]table.Change{section(t, table.HTTP3Key("s"), table.HTTP3{Key: []byte("secret")})})
	ctx, cancel := context.WithCancel(t.Context())
	cut := func(at string) (reset []byte) {
		udp := testenv.Must(net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))))(t)
		address := udp.LocalAddr().String()
		ended := make(chan error, 1)
		go func() { ended <- p.ServeHTTP3(ctx, "s", udp) }()
		t.Cleanup(func() {
			cancel()
			testenv.Check(t, <-ended, "serving HTTP/3 at %s ended", address)
		})
		conn := testenv.Must(net.Dial("udp", address))(t)
		defer conn.Close()
		packet := append([]byte{0x40, 1, 2, 3, 4, 5, 6, 7}, make([]byte, 1000)...) // of a connection that is not known
		answer := make([]byte, 1500)
		var n int
		for n == 0 { // before it listens, the answer is an error
			if _, err := conn.Write(packet); err == nil {
				n, _ = conn.Read(answer)
			}
		}
		return answer[n-16 : n]
	}
	if one, other := cut("127.0.0.1:0"), cut("127.0.0.2:0"); string(one) == string(other) {
		t.Errorf("both sockets answer with the token %x", one)
	}
}

// TestHTTP3RestrictsAsTCPDoes: hosts that restrict access do so whatever host the connection was made for.
func TestHTTP3RestrictsAsTCPDoes(t *testing.T) {
	ca := newAuthority(t, "ca")
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/tls", "nginx", annotations{"auth-tls-secret": "a/ca"}, "tls.example/=b"),
			object("a/range", "nginx", annotations{"whitelist-source-range": "192.0.2.0/24"}, "range.example/=b"),
			object("a/pass", "nginx", annotations{"ssl-passthrough": "true"}, "pass.example/=b"),
			object("a/open", "nginx", nil, "open.example/=b"),
		},
		secrets: map[string]map[string]string{"a/ca": {"ca.crt": ca.section().Certificates}},
	}.serve(t)
	ask := func(server, host string, headers map[string]string, certificates ...tls.Certificate) int {
		c := client(t, f.http3, "h3")
		tr, ok := c.Transport.(*http3.Transport)
		testenv.Require(t, ok, "the client is not one of HTTP/3")
		tr.TLSClientConfig.ServerName, tr.TLSClientConfig.Certificates = server, certificates
		req := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/", nil))(t)
		for name, value := range headers {
			req.Header.Set(name, value)
		}
		res, err := c.Do(req)
		if err != nil {
			return 0
		}
		_ = body(t, res)
		return res.StatusCode
	}
	mine, other := pair(t, ca.issue("client")), pair(t, newAuthority(t, "other").issue("client"))
	for _, c := range []struct {
		name, server, host string
		headers            map[string]string
		certificates       []tls.Certificate
		want               int
	}{
		{"open", "open.example", "open.example", nil, nil, 200},
		{"without a certificate", "tls.example", "tls.example", nil, nil, 400},
		{"with a certificate", "tls.example", "tls.example", nil, []tls.Certificate{mine}, 200},
		{"with another authority's", "tls.example", "tls.example", nil, []tls.Certificate{other}, 400},
		{"by another host's connection", "open.example", "tls.example", nil, []tls.Certificate{mine}, 421},
		{"by an unknown host's connection", "unknown.example", "tls.example", nil, nil, 421},
		{"with a header of the proxy's", "tls.example", "tls.example", map[string]string{"Ssl-Client-Verify": "SUCCESS"}, nil, 400},
		{"outside of a source range", "range.example", "range.example", nil, nil, 403},
		{"outside of a source range with a header", "open.example", "range.example", map[string]string{"X-Forwarded-For": "192.0.2.1"}, nil, 403},
		{"passed through by another host's connection", "open.example", "pass.example", nil, nil, 421},
		{"passed through", "pass.example", "pass.example", nil, nil, 0},
	} {
		testenv.Equal(t, ask(c.server, c.host, c.headers, c.certificates...), c.want, "%s: answered with", c.name)
	}
}
