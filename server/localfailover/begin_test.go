// SPDX-License-Identifier: Apache-2.0

package localfailover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// startingUp answers a connection as a server does that has no API yet.
func startingUp(c net.Conn) { _, _ = io.WriteString(c, "starting\n") }

// expectAnswer is what a program gets that says nothing.
func (f *fixture) expectAnswer(c *client, want string) {
	f.t.Helper()
	if got, err := c.r.ReadString('\n'); got != want+"\n" {
		f.t.Fatalf("%q, %v: want %s", got, err, want)
	}
	f.ends(c)
}

// TestLocalClientsAreServedBeforeTheAPIServer: as long as there is no API server, programs of this machine are
// answered, or given another server. When there is one they are its own.
func TestLocalClientsAreServedBeforeTheAPIServer(t *testing.T) {
	f := newStarting(t)
	f.l.Begin(startingUp)
	f.expectAnswer(f.connect(), "starting")
	f.l.FailOver(true)
	passed := f.connect()
	f.wants(passed, "other")
	f.l.FailOver(false)
	f.ends(passed)
	f.expectAnswer(f.connect(), "starting")
	f.serve()
	testenv.Eventually(t, patience, "the API server takes what comes", func() error {
		if got, err := f.connect().ask(); got != "own" {
			return errors.Join(err, fmt.Errorf("%q answers", got))
		}
		return nil
	})
	for range 3 {
		f.wants(f.connect(), "own")
	}
	f.l.Begin(startingUp)
	for range 3 {
		f.wants(f.connect(), "own")
	}
}

// TestFailedOverClientsReturnToNewAPIServer: the API server comes while programs of this machine have another server,
// and has none of them until they come back.
func TestFailedOverClientsReturnToNewAPIServer(t *testing.T) {
	f := newStarting(t)
	f.l.Begin(startingUp)
	f.l.FailOver(true)
	first := f.connect()
	f.wants(first, "other")
	f.serve()
	f.wants(first, "other")
	f.wants(f.connect(), "other")
	f.l.FailOver(false)
	f.ends(first)
	f.wants(f.connect(), "own")
}

// TestRemoteClientsWaitForTheAPIServer: what comes from other machines waits for the API server; the oldest go if they
// are many.
func TestRemoteClientsWaitForTheAPIServer(t *testing.T) {
	var here atomic.Bool
	f := newStarting(t, func(l net.Listener) net.Listener { return someListener{l, &here} })
	f.l.Begin(startingUp)
	f.l.FailOver(true)
	oldest := f.connect()
	var waiting []*client
	for range maxWaiting {
		waiting = append(waiting, f.connect())
	}
	f.ends(oldest)
	here.Store(true) // and one of this machine's is not behind them
	f.wants(f.connect(), "other")
	f.serve()
	for _, c := range waiting {
		f.wants(c, "own")
	}
}

// TestCloseEndsWaitingConnections: what waits is closed, and what is being answered.
func TestCloseEndsWaitingConnections(t *testing.T) {
	var here atomic.Bool
	f := newStarting(t, func(l net.Listener) net.Listener { return someListener{l, &here} })
	f.l.Begin(func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	failedOver := f.connect()
	testenv.Eventually(t, patience, "the connection waits", func() error {
		if n := len(f.l.begun.conns); n != 1 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	here.Store(true)
	answered := f.connect()
	testenv.Eventually(t, patience, "the connection is being answered", func() error {
		f.l.mu.Lock()
		defer f.l.mu.Unlock()
		if len(f.l.localConns) != 1 {
			return fmt.Errorf("%d are", len(f.l.localConns))
		}
		return nil
	})
	f.l.End()
	f.ends(failedOver)
	f.ends(answered)
	f.l.Begin(startingUp) // nothing
}

// someListener has connections from another machine unless here is set.
type someListener struct {
	net.Listener
	here *atomic.Bool
}

func (l someListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && !l.here.Load() {
		c = far{c}
	}
	return c, err
}

// at is a connection between two addresses.
type at struct {
	net.Conn
	from, to net.Addr
}

func (a at) RemoteAddr() net.Addr { return a.from }
func (a at) LocalAddr() net.Addr  { return a.to }

// TestLoopbackAndBoundAddressAreLocal: loopback is this machine, and so is the one address that the server has, if it
// has one.
func TestLoopbackAndBoundAddressAreLocal(t *testing.T) {
	tcp := func(text string) net.Addr {
		return testenv.Must(net.ResolveTCPAddr("tcp", text))(t)
	}
	for _, c := range []struct {
		from, to    string
		free, bound bool
	}{
		{"127.0.0.1:5000", "127.0.0.1:6443", true, true},
		{"[::1]:5000", "[::1]:6443", true, true},
		{"[::ffff:127.0.0.1]:5000", "127.0.0.1:6443", true, true},
		{"192.0.2.1:5000", "192.0.2.1:6443", false, true},
		{"[::ffff:192.0.2.1]:5000", "192.0.2.1:6443", false, true},
		{"[2001:db8::1]:5000", "[2001:db8::1]:6443", false, true},
		{"192.0.2.2:5000", "192.0.2.1:6443", false, false},
		{"[2001:db8::2]:6443", "[2001:db8::1]:6443", false, false},
	} {
		for bound, want := range map[bool]bool{false: c.free, true: c.bound} {
			l := New(Options{Bound: bound})
			testenv.Equal(t, l.fromHere(at{from: tcp(c.from), to: tcp(c.to)}), want, "%s to %s, bound %v:", c.from, c.to, bound)
		}
	}
	testenv.False(t, New(Options{Bound: true}).fromHere(at{from: &net.UnixAddr{}, to: &net.UnixAddr{}}), "no TCP, and from here")
}
