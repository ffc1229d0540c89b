// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOldestUnidentifiedConnectionMakesRoom: connections that have not said who they are make room for others, the
// oldest first; one that has stays, and answers are given to all.
func TestOldestUnidentifiedConnectionMakesRoom(t *testing.T) {
	inner := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	const most = 3
	l := NewListener(inner, most)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			l.Identified(r.RemoteAddr)
		}
	}))
	server.Listener.Close()
	server.Listener = l
	server.Start()
	defer server.Close()

	client := func() *http.Client { return &http.Client{Transport: &http.Transport{}} }
	ask := func(c *http.Client, token string) bool {
		t.Helper()
		r := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil))(t)
		r.Header.Set("Authorization", token)
		answer, err := c.Transport.RoundTrip(r)
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return true
	}
	known := client()
	testenv.Require(t, ask(known, "token"), "no answer")
	var silent []net.Conn
	for range 2 * most {
		c := testenv.Must(net.Dial("tcp", inner.Addr().String()))(t)
		defer c.Close()
		silent = append(silent, c)
	}
	for _, c := range silent[:most] {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the oldest of too many: %v", err)
		}
	}
	testenv.True(t, ask(client(), ""), "a probe without identity has no answer")
	var open int
	l.unknown.Range(func(_, _ any) bool { open++; return true })
	if n := l.waiting.waiting.Len(); n > most || open > most+1 {
		t.Errorf("%d wait, %d are remembered", n, open)
	}
	testenv.True(t, ask(known, ""), "one that is known was closed")
}

// arrived is a listener of connections that the test makes.
type arrived chan net.Conn

func (a arrived) Accept() (net.Conn, error) { return <-a, nil }
func (a arrived) Close() error              { return nil }
func (a arrived) Addr() net.Addr            { return nil }

type from struct {
	net.Conn
	remote net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.remote }

// TestListenerSameRemote: a client that uses one port for several of this machine's addresses has no more connections
// than others.
func TestListenerSameRemote(t *testing.T) {
	in := make(arrived, 1)
	l := NewListener(in, 2)
	open := map[net.Conn]bool{}
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}
	for range 5 {
		client, server := net.Pipe()
		defer client.Close()
		in <- from{server, remote}
		testenv.Must(l.Accept())(t)
		open[client] = true
	}
	for c := range open {
		_ = c.SetReadDeadline(time.Now()) // one that is closed takes none
		if _, err := c.Read(make([]byte, 1)); err == io.EOF {
			delete(open, c)
		}
	}
	if n := l.waiting.waiting.Len(); len(open) > n {
		t.Errorf("%d are open, and %d count", len(open), n)
	}
}
