// SPDX-License-Identifier: Apache-2.0

package localfailover

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const patience = 2 * time.Minute

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	return testenv.Must(net.Listen("tcp", address))(t)
}

// serve answers each line on l's connections with a name, until l is closed.
func serve(running *sync.WaitGroup, l net.Listener, name string) {
	running.Go(func() {
		testenv.Accept(l, func(c net.Conn) {
			running.Go(func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					if _, err := r.ReadString('\n'); err != nil {
						return
					}
					if _, err := io.WriteString(c, name+"\n"); err != nil {
						return
					}
				}
			})
		})
	})
}

// fixture is a server whose programs may be sent to another one.
type fixture struct {
	t       *testing.T
	l       *Listener
	address string
	log     testenv.Log
	running sync.WaitGroup
	mu      sync.Mutex
	servers []string
}

// serve has an API server, from now on.
func (f *fixture) serve() { serve(&f.running, f.l, "own") }

// newFixture also checks that nothing is left at the end of the test.
func newFixture(t *testing.T, wrap ...func(net.Listener) net.Listener) *fixture {
	t.Helper()
	f := newStarting(t, wrap...)
	f.serve()
	return f
}

// newStarting has no API server yet.
func newStarting(t *testing.T, wrap ...func(net.Listener) net.Listener) *fixture {
	t.Helper()
	before := goleak.IgnoreCurrent()
	f := &fixture{t: t}
	port, other := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	f.address, f.servers = port.Addr().String(), []string{closed(t), other.Addr().String()}
	for _, w := range wrap {
		port = w(port)
	}
	f.l = New(Options{Listener: port, Logger: slog.New(slog.NewTextHandler(&f.log, nil)), Servers: func() []string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.servers
	}})
	serve(&f.running, other, "other")
	t.Cleanup(func() {
		_, _ = f.l.Close(), other.Close()
		f.l.End()
		f.l.mu.Lock()
		for c := range f.l.localConns { // as an API server does that stops
			_ = c.Conn.Close()
		}
		f.l.mu.Unlock()
		testenv.NoGoroutineLeft(t, before)
		f.running.Wait()
		if len(f.l.passed) > 0 || len(f.l.localConns) > 0 {
			t.Errorf("%d connections that are passed on are kept, and %d of its own", len(f.l.passed), len(f.l.localConns))
		}
	})
	return f
}

// closed is an address at which no process is until the test ends.
func closed(t *testing.T) string {
	t.Helper()
	return testenv.Address(t, "127.0.0.1:0")
}

// client is a program's connection.
type client struct {
	net.Conn
	r *bufio.Reader
}

func (f *fixture) connect() *client {
	f.t.Helper()
	c := testenv.Must(net.Dial("tcp", f.address))(f.t)
	f.t.Cleanup(func() { _ = c.Close() })
	testenv.NoError(f.t, c.SetDeadline(time.Now().Add(patience)))
	return &client{c, bufio.NewReader(c)}
}

func (c *client) ask() (string, error) {
	if _, err := io.WriteString(c, "who?\n"); err != nil {
		return "", err
	}
	answer, err := c.r.ReadString('\n')
	return strings.TrimSpace(answer), err
}

func (f *fixture) wants(c *client, want string) {
	f.t.Helper()
	if got, err := c.ask(); got != want || err != nil {
		f.t.Fatalf("%q, %v: want %s", got, err, want)
	}
}

// ends waits until a connection that says nothing has ended.
func (f *fixture) ends(c *client) {
	f.t.Helper()
	if b, err := c.r.ReadByte(); err == nil || errors.Is(err, net.ErrClosed) {
		f.t.Fatalf("%q, %v: want the connection's end", b, err)
	} else if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		f.t.Fatal("the connection does not end")
	}
}

// TestLocalClientsFailOverAndReturn: while they are to have another server, programs of this machine have the first
// that accepts, and come back afterwards. What they have open ends each time.
func TestLocalClientsFailOverAndReturn(t *testing.T) {
	f := newFixture(t)
	first := f.connect()
	f.wants(first, "own")
	for range 2 {
		f.l.FailOver(true)
		f.ends(first)
		second := f.connect()
		f.wants(second, "other")
		f.wants(second, "other")
		f.l.FailOver(false)
		f.ends(second)
		first = f.connect()
		f.wants(first, "own")
	}
}

// TestLocalClientsFollowTheFailoverTarget: the server that programs are given is not the best one any more, and may
// have vanished with its machine, which ends nothing. They have the one that is now.
func TestLocalClientsFollowTheFailoverTarget(t *testing.T) {
	f := newFixture(t)
	f.l.FailOver(true)
	c := f.connect()
	f.wants(c, "other")
	third := listen(t, "127.0.0.1:0")
	var running sync.WaitGroup
	serve(&running, third, "third")
	f.mu.Lock()
	f.servers = []string{third.Addr().String()}
	f.mu.Unlock()
	f.l.FailOver(true)
	f.ends(c)
	c = f.connect()
	f.wants(c, "third")
	f.l.FailOver(false)
	f.ends(c)
	_ = third.Close()
	running.Wait()
}

// TestNoFailoverTargetClosesConnections: no other server accepts. Connections of programs are closed, which is logged
// once, and have the first that accepts then.
func TestNoFailoverTargetClosesConnections(t *testing.T) {
	f := newFixture(t)
	f.mu.Lock()
	servers := f.servers
	f.servers = servers[:1]
	f.mu.Unlock()
	f.l.FailOver(true)
	for range 3 {
		f.ends(f.connect())
	}
	if n := strings.Count(f.log.String(), "no server can serve API requests"); n != 1 {
		t.Errorf("said %d times:\n%s", n, f.log.String())
	}
	f.mu.Lock()
	f.servers = servers
	f.mu.Unlock()
	f.wants(f.connect(), "other")
}

// TestForwardedConnectionsAreBounded: more connections than a machine's programs need are not passed on.
func TestForwardedConnectionsAreBounded(t *testing.T) {
	f := newFixture(t)
	f.l.FailOver(true)
	for range maxPassed {
		f.wants(f.connect(), "other")
	}
	f.ends(f.connect())
}

// far is a connection from another machine.
type far struct{ net.Conn }

func (far) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1234} }

// farListener has connections from another machine.
type farListener struct{ net.Listener }

func (l farListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return far{c}, err
}

// TestRemoteClientsNeverFailOver: what comes from other machines is this server's all the time.
func TestRemoteClientsNeverFailOver(t *testing.T) {
	f := newFixture(t, func(l net.Listener) net.Listener { return farListener{l} })
	c := f.connect()
	f.wants(c, "own")
	f.l.FailOver(true)
	f.wants(c, "own")
	f.wants(f.connect(), "own")
}
