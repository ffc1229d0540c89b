// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const handshake = "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"

// websocketBackend shakes hands and leaves the connection, which has already sent the word "early", to serve.
func websocketBackend(t testing.TB, serve func(*bufio.Reader, net.Conn)) string {
	return backendServer(t, websocketHandler(t, serve))
}

// websocketHandler is the handler of websocketBackend.
func websocketHandler(t testing.TB, serve func(*bufio.Reader, net.Conn)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("X-Forwarded-For") == "" {
			http.Error(w, "no websocket", http.StatusForbidden)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nearly")
		serve(rw.Reader, conn)
	}
}

func echo(r *bufio.Reader, conn net.Conn) { _, _ = io.Copy(conn, r) }

// dialWebsocket shakes hands through the proxy; late is sent with the handshake.
func dialWebsocket(t testing.TB, f *fixture, secure bool, late string) (net.Conn, *bufio.Reader) {
	t.Helper()
	var conn net.Conn
	var err error
	if secure {
		conn, err = tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true})
	} else {
		conn, err = net.Dial("tcp", f.http)
	}
	testenv.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	testenv.Must(io.WriteString(conn, handshake+late))(t)
	r := bufio.NewReader(conn)
	res := testenv.Must(http.ReadResponse(r, nil))(t)
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-Websocket-Accept") != "x" || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("the handshake is answered with %s %v", res.Status, res.Header)
	}
	expect(t, r, "early")
	return conn, r
}

func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func bothSchemes(t *testing.T, test func(t *testing.T, secure bool)) {
	t.Helper()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) { test(t, secure) })
	}
}

func TestWebsocketCarriesBytesBothWays(t *testing.T) {
	backend := websocketBackend(t, echo)
	f := newFixture(t, Options{}, site(t, "", backend)...)
	bothSchemes(t, func(t *testing.T, secure bool) {
		conn, r := dialWebsocket(t, f, secure, "late")
		expect(t, r, "late")
		large := make([]byte, 1<<20)
		_, _ = rand.Read(large)
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(large)
			sent <- err
		}()
		got := make([]byte, len(large))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, large) {
			t.Errorf("a megabyte came back changed: %v", err)
		}
		testenv.Check(t, <-sent)
	})
}

func TestHalfClosedWebsocketStillDelivers(t *testing.T) {
	backend := websocketBackend(t, func(r *bufio.Reader, conn net.Conn) {
		text, _ := io.ReadAll(r) // until the client has ended
		_, _ = io.WriteString(conn, strings.ToUpper(string(text)))
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	bothSchemes(t, func(t *testing.T, secure bool) {
		conn, r := dialWebsocket(t, f, secure, "")
		_, _ = io.WriteString(conn, "text")
		testenv.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
		expect(t, r, "TEXT")
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestHalfClosedWebsocketIsNotKeptForever(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	backend := websocketBackend(t, func(*bufio.Reader, net.Conn) { <-release }) // says nothing, and does not end
	f := newFixture(t, Options{IdleTimeout: standstill}, site(t, "", backend)...)
	bothSchemes(t, func(t *testing.T, secure bool) {
		conn, r := dialWebsocket(t, f, secure, "")
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		testenv.Fails(t, testenv.Err(r.ReadByte()), "a silent backend sent a byte")
	})
}

func TestSilentWebsocketGoesOn(t *testing.T) {
	backend := websocketBackend(t, echo)
	f := newFixture(t, Options{IdleTimeout: standstill}, site(t, "", backend)...)
	conn, r := dialWebsocket(t, f, true, "")
	_ = conn.SetReadDeadline(time.Now().Add(2 * standstill))
	testenv.WantError(t, testenv.Err(r.ReadByte()), "timeout")
}

func TestRefusedWebsocketIsAnswered(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not you", http.StatusForbidden) })
	f := newFixture(t, Options{}, site(t, "", closed(t), backend)...)
	c := client(t, f.http, "http1")
	req := testenv.Must(http.NewRequest(http.MethodGet, "http://a.example/", nil))(t)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	res := testenv.Must(c.Do(req))(t)
	if got := body(t, res); res.StatusCode != http.StatusForbidden || got != "not you" {
		t.Errorf("answered with %d %q", res.StatusCode, got)
	}
}

func TestDrainEndsTunnelsAfterItsTime(t *testing.T) {
	backend := websocketBackend(t, echo)
	f := newFixture(t, Options{DrainTimeout: 50 * time.Millisecond}, site(t, "", backend)...)
	_, r := dialWebsocket(t, f, true, "")
	_, plain := dialWebsocket(t, f, false, "")
	testenv.Equal(t, f.Stats().Tunnels.Load(), 2, "tunnels are counted:")
	f.stop()
	for _, r := range []io.Reader{r, plain} {
		if _, err := io.ReadAll(r); err != nil && err != io.ErrUnexpectedEOF && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
	}
	testenv.Equal(t, f.Stats().Tunnels.Load(), 0, "tunnels are left:")
}
