// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// start runs a balancer that gives servers and clients two minutes for what they have seconds for otherwise, which a
// busy machine may need longer for.
func start(t *testing.T, o Options) *Balancer {
	t.Helper()
	return startAs(t, o, func(b *Balancer) { b.testTimeout = echo.Patience })
}

// startUsual runs one with the usual times, for servers that say nothing: clients of the others try again
// (findsAtLast).
func startUsual(t *testing.T, o Options) *Balancer {
	t.Helper()
	return startAs(t, o, func(*Balancer) {})
}

// startStill is start for a balancer whose clock stands still: what has answered once goes on doing so, however busy
// the machine is.
func startStill(t *testing.T, o Options) *Balancer {
	t.Helper()
	return startAs(t, o, func(b *Balancer) {
		still := time.Now()
		b.testTimeout, b.now = echo.Patience, func() time.Time { return still }
	})
}

func startAs(t *testing.T, o Options, change func(*Balancer)) *Balancer {
	t.Helper()
	o.Address = "127.0.0.1:0"
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ServerCAFile == "" {
		o.ServerCAFile = echo.OursFile
	}
	if o.File == "" {
		o.File = filepath.Join(t.TempDir(), "servers.json")
	}
	b := testenv.Must(New(t.Context(), o))(t)
	change(b)
	testenv.Run(t, b.Run)
	return b
}

func connectTo(t *testing.T, b *Balancer) *echo.Client {
	t.Helper()
	c := testenv.Must(net.Dial("tcp", b.listener.Addr().String()))(t)
	t.Cleanup(func() { c.Close() })
	testenv.NoError(t, c.SetDeadline(time.Now().Add(echo.Patience)))
	return echo.NewClient(c)
}

func wantAnswer(t *testing.T, b *Balancer, want string) *echo.Client {
	t.Helper()
	c := connectTo(t, b)
	if got, err := c.Ask(); err != nil || got != want+" hi\n" {
		t.Errorf("%q, %v, want that of %s", got, err, want)
	}
	return c
}

// findsAtLast waits until a new connection is answered by the server that is wanted, and fails when another one
// answers: on a busy machine a server may take longer to show its certificate than it is given, and clients then try
// again.
func findsAtLast(t *testing.T, b *Balancer, want string) {
	t.Helper()
	testenv.Eventually(t, echo.Patience, "an answer of "+want, func() error {
		got, err := connectTo(t, b).Ask()
		testenv.Require(t, err != nil || got == want+" hi\n", "%q, want that of %s", got, want)
		return err
	})
}

// twoServers are known to a balancer that was given the first of them.
func twoServers(t *testing.T) (one, two *echo.Server, b *Balancer) {
	t.Helper()
	return twoServersOf(t, start)
}

// heardServers are two that the node's own connections to them have just heard, which a balancer whose clock stands
// still knows.
func heardServers(t *testing.T) (one, two *echo.Server, b *Balancer) {
	t.Helper()
	one, two, b = twoServersOf(t, startStill)
	b.Replied(one.Address, true)
	b.Replied(two.Address, true)
	return one, two, b
}

func twoServersOf(t *testing.T, start func(*testing.T, Options) *Balancer) (one, two *echo.Server, b *Balancer) {
	t.Helper()
	one, two = echo.New(t, "one", "127.0.0.1:0"), echo.New(t, "two", "127.0.0.1:0")
	b = start(t, Options{Server: one.Address})
	testenv.NoError(t, b.Set([]string{one.Address, two.Address}))
	return one, two, b
}
