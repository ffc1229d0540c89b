// SPDX-License-Identifier: Apache-2.0

package alpnmux

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const patience = 2 * time.Minute

func listen(t testing.TB) net.Listener {
	t.Helper()
	return testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
}

func serverTLS(t testing.TB, protocols ...string) *tls.Config {
	t.Helper()
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files := testenv.Must(ca.Issue("server", "127.0.0.1"))(t)
	cert := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols}
}

// answering serves a route: each connection is sent the route's name, over TLS.
func answering(wg *sync.WaitGroup, l net.Listener, name string) {
	wg.Go(func() {
		testenv.Accept(l, func(c net.Conn) {
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = io.WriteString(c, name) // the client says what it got
			})
		})
	})
}

// serve runs a Mux with a default route and one called "peer" until the end of the test, and checks that nothing is
// left.
func serve(t *testing.T, o Options) (*Mux, string) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	o.Listener, o.Logger = listen(t), slog.New(slog.DiscardHandler)
	m := New(o)
	var wg sync.WaitGroup
	answering(&wg, tls.NewListener(m.Default(), serverTLS(t, "h2", "http/1.1")), "default")
	answering(&wg, tls.NewListener(m.Route("peer"), serverTLS(t, "peer")), "peer")
	t.Cleanup(func() {
		testenv.Check(t, m.Close())
		wg.Wait()
		testenv.NoGoroutineLeft(t, before)
	})
	return m, o.Listener.Addr().String()
}

// pieces writes n bytes at a time.
type pieces struct {
	net.Conn
	n int
}

func (p pieces) Write(b []byte) (int, error) {
	for chunk := range slices.Chunk(b, p.n) {
		if _, err := p.Conn.Write(chunk); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// records cuts the payload of each TLS record into records of n bytes.
type records struct {
	net.Conn
	n int
}

func (r records) Write(b []byte) (int, error) {
	if b[0] != 22 { // handshake
		return r.Conn.Write(b)
	}
	var out []byte
	for chunk := range slices.Chunk(b[5:], r.n) {
		out = append(out, b[0], b[1], b[2], byte(len(chunk)>>8), byte(len(chunk)))
		out = append(out, chunk...)
	}
	if _, err := r.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// ask does a TLS handshake and returns what the server says.
func ask(address string, c *tls.Config, wrap func(net.Conn) net.Conn) (string, error) {
	raw, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	if wrap != nil {
		raw = wrap(raw)
	}
	c.InsecureSkipVerify = true
	got, err := io.ReadAll(tls.Client(raw, c))
	if err == nil && len(got) == 0 {
		err = io.ErrUnexpectedEOF // ReadAll takes the end of a handshake for the end of what is said
	}
	return string(got), err
}

func TestConnectionIsRoutedByALPN(t *testing.T) {
	_, address := serve(t, Options{})
	long := make([]string, 0, 50)
	for range 50 {
		long = append(long, strings.Repeat("x", 250))
	}
	for _, c := range []struct {
		name, want string
		offer      []string
		max        uint16
		wrap       func(net.Conn) net.Conn
	}{
		{name: "no ALPN", want: "default"},
		{name: "HTTP/2", offer: []string{"h2", "http/1.1"}, want: "default"},
		{name: "HTTP/1.1", offer: []string{"http/1.1"}, want: "default"},
		{name: "the route", offer: []string{"peer"}, want: "peer"},
		{name: "the route last", offer: []string{"h3", "peer"}, want: "peer"},
		{name: "TLS 1.2 without ALPN", max: tls.VersionTLS12, want: "default"},
		{name: "TLS 1.2 to the route", max: tls.VersionTLS12, offer: []string{"peer"}, want: "peer"},
		{name: "byte by byte", offer: []string{"peer"}, wrap: func(c net.Conn) net.Conn { return pieces{c, 1} }, want: "peer"},
		{name: "in pieces", wrap: func(c net.Conn) net.Conn { return pieces{c, 100} }, want: "default"},
		{name: "in many records", offer: []string{"peer"}, wrap: func(c net.Conn) net.Conn { return records{c, 50} }, want: "peer"},
		{name: "12 KB of other names", offer: append(long, "peer"), want: "peer"},
	} {
		testenv.Equal(t, testenv.Must(ask(address, &tls.Config{NextProtos: c.offer, MaxVersion: c.max}, c.wrap))(t), c.want, "%s:", c.name)
	}
}

// A ClientHello that does not end is not kept, whatever records it comes in: no more is read of it than maxHello.
func TestEndlessClientHelloIsBounded(t *testing.T) {
	payload := append([]byte{1, 0, 255, 252}, make([]byte, 65532)...) // the most that crypto/tls takes
	for _, size := range []int{1, 100, 16 << 10} {
		var sent []byte
		for chunk := range slices.Chunk(payload, size) {
			sent = append(sent, 22, 3, 1, byte(len(chunk)>>8), byte(len(chunk)))
			sent = append(sent, chunk...)
		}
		r := bytes.NewReader(sent)
		if _, read, err := readHello(bytesConn{Reader: r}); !errors.Is(err, errTooLong) || read != nil {
			t.Errorf("records of %d bytes: %d bytes kept, %v", size, len(read), err)
		}
		if took := len(sent) - r.Len(); took > maxHello {
			t.Errorf("records of %d bytes: %d bytes were read", size, took)
		}
	}
	_, address := serve(t, Options{Timeout: time.Hour})
	testenv.Fails(t, testenv.Err(ask(address, &tls.Config{NextProtos: slices.Repeat([]string{strings.Repeat("x", 250)}, 200)}, nil)), "a ClientHello of 50 KB was answered")
}

// What is no TLS reaches the default route whole, which knows what to say to it.
func TestPlainHTTPReachesTheDefaultRoute(t *testing.T) {
	m := New(Options{Listener: listen(t)})
	s := &http.Server{TLSConfig: serverTLS(t), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- s.ServeTLS(m.Default(), "", "") }()
	c := testenv.Must(net.Dial("tcp", m.Default().Addr().String()))(t)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	testenv.Must(io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"))(t)
	testenv.Contains(t, testenv.Must(bufio.NewReader(c).ReadString('\n'))(t), "400", "")
	testenv.Check(t, errors.Join(s.Close(), m.Close()))
	testenv.ErrorIs(t, <-done, http.ErrServerClosed)
}

// closedWithin fails unless the other side closes a connection.
func closedWithin(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("something was sent")
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Error("the connection stays open")
	}
}

// Clients that say nothing, or half of what they should, keep no client out, however many they are, and go in their
// time.
func TestUnresponsiveClientsBlockNoOthers(t *testing.T) {
	_, address := serve(t, Options{Waiting: &connlimit.Table{Max: 20}, Timeout: time.Hour})
	var silent []net.Conn
	for i := range 100 {
		c := testenv.Must(net.Dial("tcp", address))(t)
		defer c.Close()
		if i%2 == 0 {
			_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1}) // the head of a ClientHello of 512 bytes
		}
		silent = append(silent, c)
	}
	testenv.Equal(t, testenv.Must(ask(address, &tls.Config{NextProtos: []string{"peer"}}, nil))(t), "peer", "")
	for _, c := range silent[:80] { // the oldest had to make room
		closedWithin(t, c)
	}

	_, address = serve(t, Options{Timeout: 50 * time.Millisecond})
	c := testenv.Must(net.Dial("tcp", address))(t)
	defer c.Close()
	closedWithin(t, c)
}

// A route that takes nothing yet holds up no other, and one that is closed takes its connections with it.
func TestClosedRouteDoesNotAffectOthers(t *testing.T) {
	defer testenv.NoGoroutineLeft(t, goleak.IgnoreCurrent())
	l := listen(t)
	m := New(Options{Listener: l})
	peer, idle := m.Route("peer"), m.Route("idle")
	testenv.Equal(t, m.Route("peer"), peer, "two routes of one name:")
	var wg sync.WaitGroup
	answering(&wg, tls.NewListener(peer, serverTLS(t, "peer")), "peer")
	waiting := testenv.Must(net.Dial("tcp", l.Addr().String()))(t)
	defer waiting.Close()
	hello := clientHello(t, "idle")
	testenv.Must(waiting.Write(hello))(t)
	testenv.Equal(t, testenv.Must(ask(l.Addr().String(), &tls.Config{NextProtos: []string{"peer"}}, nil))(t), "peer", "")
	for _, r := range []net.Listener{idle, m.Default()} {
		testenv.Check(t, errors.Join(r.Close(), r.Close()))
		testenv.ErrorIs(t, testenv.Err(r.Accept()), net.ErrClosed, "after Close")
	}
	closedWithin(t, waiting)
	testenv.Fails(t, testenv.Err(ask(l.Addr().String(), &tls.Config{}, nil)), "a closed default route answers")
	testenv.Equal(t, testenv.Must(ask(l.Addr().String(), &tls.Config{NextProtos: []string{"peer"}}, nil))(t), "peer", "")
	// With the last one the port is closed.
	testenv.Check(t, peer.Close())
	testenv.Fails(t, testenv.Err(net.Dial("tcp", l.Addr().String())), "the port is still open")
	testenv.Check(t, m.Close())
	wg.Wait()
}

// troubled is a listener that fails before every connection.
type troubled struct {
	net.Listener
	fail bool
}

func (l *troubled) Accept() (net.Conn, error) {
	if l.fail = !l.fail; l.fail {
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

func TestAcceptContinuesAfterErrors(t *testing.T) {
	l := listen(t)
	m := New(Options{Listener: &troubled{Listener: l}, Logger: slog.New(slog.DiscardHandler)})
	var wg sync.WaitGroup
	answering(&wg, tls.NewListener(m.Default(), serverTLS(t)), "default")
	for range 2 {
		testenv.Equal(t, testenv.Must(ask(l.Addr().String(), &tls.Config{}, nil))(t), "default", "")
	}
	testenv.Check(t, m.Close())
	wg.Wait()
}

// clientHello is what crypto/tls sends first.
func clientHello(t testing.TB, protocols ...string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() {
		_ = tls.Client(a, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}).HandshakeContext(context.Background()) // ends with the pipe
	}()
	buf := make([]byte, 64<<10)
	n := testenv.Must(b.Read(buf))(t)
	return buf[:n]
}

// bytesConn is a connection of which only reading works.
type bytesConn struct {
	net.Conn
	*bytes.Reader
}

func (c bytesConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// FuzzHello checks that nothing is lost of what a client sent, whatever it sent.
func FuzzHello(f *testing.F) {
	for _, protocols := range [][]string{nil, {"h2", "http/1.1"}, {"peer"}} {
		hello := clientHello(f, protocols...)
		f.Add(hello)
		f.Add(append(hello, "more"...))
		f.Add(hello[:len(hello)/2])
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 255, 255})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sent []byte) {
		r := bytes.NewReader(sent)
		protocols, read, err := readHello(bytesConn{Reader: r})
		if err != nil {
			if len(protocols) > 0 || r.Len() > 0 && (!errors.Is(err, errTooLong) || len(sent)-r.Len() != maxHello) {
				t.Fatalf("%v with %d bytes left, %q", err, r.Len(), protocols)
			}
			return
		}
		testenv.Require(t, bytes.Equal(read, sent[:len(sent)-r.Len()]), "%d bytes were read and %d kept", len(sent)-r.Len(), len(read))
		all, _ := io.ReadAll(&conn{Conn: bytesConn{Reader: r}, read: read})
		testenv.Require(t, bytes.Equal(all, sent), "the route does not get what was sent")
	})
}
