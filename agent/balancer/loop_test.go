// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// forwarding passes connections of other machines on, as an agent does at its open port.
func forwarding(t *testing.T, b *Balancer) (address string) {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	testenv.Run(t, func(ctx context.Context) error { return b.Forward(ctx, l) })
	return l.Addr().String()
}

// connections are those that the balancer has opened and passes on.
func (b *Balancer) connections() int {
	b.connTable.mu.Lock()
	defer b.connTable.mu.Unlock()
	return len(b.openConns)
}

// asking is how many clients of each balancer ask in mostConnections.
const asking = 3

// mostConnections is how many connections balancers had at most while clients asked where no server could be used.
func mostConnections(t *testing.T, balancers ...*Balancer) (most int) {
	t.Helper()
	for _, b := range balancers {
		for range asking {
			c := connectTo(t, b)
			go func() { _ = c.Handshake() }() // no server replies
		}
	}
	for end := time.Now().Add(5 * holdPause); time.Now().Before(end); time.Sleep(time.Millisecond) { // what must not happen has no event to wait for
		n := 0
		for _, b := range balancers {
			n += b.connections()
		}
		most = max(most, n)
	}
	return most
}

// TestOwnAddressIsNeverDialled: the list has the balancer's own address, or that of the machine's open port, before the
// server's. Neither is a server, and no connection is passed on to itself.
func TestOwnAddressIsNeverDialled(t *testing.T) {
	for what, own := range map[string]func(t *testing.T, b *Balancer) string{
		"the local address": func(_ *testing.T, b *Balancer) string { return b.listener.Addr().String() },
		"the open port":     forwarding,
	} {
		t.Run(what, func(t *testing.T) {
			one := echo.New(t, "one", "127.0.0.1:0")
			b := start(t, Options{Server: "127.0.0.1:1"})
			at := own(t, b)
			testenv.NoError(t, b.Set([]string{at, one.Address}))
			const clients = 5
			for range clients {
				wantAnswer(t, b, "one")
				if got := b.Servers()[0]; got != one.Address {
					t.Errorf("%s is the one in use, of %s and itself (%s)", got, one.Address, at)
				}
			}
			b.Replied(at, true) // the node's own connection went this way to the server, whose certificate has the machine's own addresses too
			one.Stop()
			if n := mostConnections(t, b); n > clients+asking {
				t.Errorf("%d connections are passed on for %d clients", n, clients+asking)
			}
		})
	}
}

// TestOwnAddressAloneIsNoServer: nothing but the own address is known.
func TestOwnAddressAloneIsNoServer(t *testing.T) {
	at := testenv.Address(t, "127.0.0.1:0")
	b := testenv.Must(
		New(t.Context(), Options{Address: at, Server: at, File: filepath.Join(t.TempDir(), "servers.json"), ServerCAFile: echo.OursFile}))(t)
	stop := testenv.Run(t, b.Run)
	if got, err := connectTo(t, b).Ask(); err == nil {
		t.Errorf("%q of no connection", got)
	}
	stop()
	testenv.False(t, len(b.pairs) != 0 || len(b.openConns) != 0, "left: %v, %v", b.pairs, b.openConns)
}

// TestAgentsDoNotForwardInACircle: two agents have one another on their lists, as machines that were servers once, and
// the server ends while they take one another for it. No connection goes round between them.
func TestAgentsDoNotForwardInACircle(t *testing.T) {
	one := echo.NewOf(t, echo.Ours, "one", "127.0.0.2:0", "127.0.0.2") // another address than that of the agents, for which its certificate is not
	var agents []*Balancer
	var ports []string
	for range 2 {
		b := startUsual(t, Options{Server: "127.0.0.1:1"}) // the questions of each wait for those of the other
		agents, ports = append(agents, b), append(ports, forwarding(t, b))
	}
	for i, b := range agents {
		testenv.NoError(t, b.Set([]string{ports[1-i], one.Address}))
	}
	for i, b := range agents {
		findsAtLast(t, b, "one")
		testenv.Eventually(t, echo.Patience, "the other agent is taken for a server", func() error { return b.prove(t.Context(), ports[1-i]) })
	}
	one.Stop()
	for i, b := range agents {
		b.Replied(ports[1-i], false) // the node's own connection, a moment ago
	}
	if n := mostConnections(t, agents...); n > 2*2*asking {
		t.Errorf("%d connections for %d clients", n, 2*asking)
	}
}
