// SPDX-License-Identifier: Apache-2.0

package balancer_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestForeignServersAreNotUsed: what accepts connections and is no server of this cluster is not used, wherever it
// stands in the list.
func TestForeignServersAreNotUsed(t *testing.T) {
	foreign := echo.NewOf(t, echo.Others, "foreign", "127.0.0.1:0", "127.0.0.1")
	real := echo.New(t, "real", "127.0.0.1:0")
	b := balancer.StartUsual(t, balancer.Options{Server: foreign.Address})
	testenv.NoError(t, b.Set([]string{echo.Mute(t, "127.0.0.1:0"), foreign.Address, real.Address}))
	balancer.FindsAtLast(t, b, "real")
	testenv.Equal(t, b.Servers()[0], real.Address, "is the one in use:")
}

// TestForeignServerAtKnownAddress: a server's address is another machine's by now, or the server does not answer. Its
// connections are closed, and what comes then goes to another one.
func TestForeignServerAtKnownAddress(t *testing.T) {
	for what, move := range map[string]func(t *testing.T, address string){
		"another cluster's server":   func(t *testing.T, address string) { echo.NewOf(t, echo.Others, "foreign", address, "127.0.0.1") },
		"a server without an answer": func(t *testing.T, address string) { echo.Mute(t, address) },
	} {
		t.Run(what, func(t *testing.T) {
			one, _, b := balancer.TwoServersOf(t, balancer.StartUsual)
			var idle *echo.Client
			testenv.Eventually(t, echo.Patience, "an answer of one", func() error {
				b.Replied(one.Address, true) // so that it need not show its certificate in the usual time
				idle = balancer.ConnectTo(t, b)
				got, err := idle.Ask()
				if err == nil && got != "one hi\n" {
					err = errors.New(got)
				}
				return err
			})
			one.StopAccepting()
			move(t, one.Address)
			echo.Ended(t, idle)
			balancer.FindsAtLast(t, b, "two")
		})
	}
}

// TestClosedConnectionMovesToResponsiveServer: a server that closes the node's own connection is left if another one
// answers the node, and kept if none does.
func TestClosedConnectionMovesToResponsiveServer(t *testing.T) {
	one, two, b := balancer.TwoServers(t)
	idle := balancer.WantAnswer(t, b, "one")
	b.Ended(one.Address)
	balancer.WantAnswer(t, b, "one")
	for b.Servers()[0] == one.Address { // what answered a moment ago may be too long ago on a busy machine
		b.Replied(two.Address, true)
		b.Ended(one.Address)
	}
	echo.Ended(t, idle)
	balancer.WantAnswer(t, b, "two")
}

// TestExcludedIsBetterThanNone: at a start nothing has shown itself yet. The only server that there is is said to be an
// agent, and others are named that are none.
func TestExcludedIsBetterThanNone(t *testing.T) {
	one := echo.New(t, "one", "127.0.0.1:0")
	b := balancer.Start(t, balancer.Options{Server: one.Address})
	b.SetLastResort([]string{one.Address})
	testenv.NoError(t, b.Set([]string{"127.0.0.1:1", "127.0.0.1:2"}))
	b.SetLastResort([]string{one.Address})
	if got := b.Servers(); slices.Contains(got, one.Address) {
		t.Errorf("%q", got)
	}
	balancer.WantAnswer(t, b, "one")
	if got := b.Servers(); !slices.Contains(got, one.Address) {
		t.Errorf("it has shown itself, and is left out: %q", got)
	}
}

// TestStoppingServerCostsOneTry: one that still answers on the node's own connection and closes each connection to
// its API costs one try.
func TestStoppingServerCostsOneTry(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	go testenv.Accept(l, func(c net.Conn) { _ = c.Close() })
	two := echo.New(t, "two", "127.0.0.1:0")
	b := balancer.StartStill(t, balancer.Options{Server: l.Addr().String()})
	testenv.NoError(t, b.Set([]string{l.Addr().String(), two.Address}))
	b.Replied(l.Addr().String(), true)
	if got, err := balancer.ConnectTo(t, b).Ask(); err == nil {
		t.Fatalf("%q", got)
	}
	b.Replied(l.Addr().String(), true) // which says nothing of its API
	balancer.WantAnswer(t, b, "two")
	b.Replied(l.Addr().String(), true)
	balancer.WantAnswer(t, b, "two")
}

// TestNothingIsForwardedBeforeJoining: without the cluster's authority nothing is passed on.
func TestNothingIsForwardedBeforeJoining(t *testing.T) {
	one := echo.New(t, "one", "127.0.0.1:0")
	b := balancer.Start(t, balancer.Options{Server: one.Address, ServerCAFile: filepath.Join(t.TempDir(), "none")})
	if got, err := balancer.ConnectTo(t, b).Ask(); err == nil {
		t.Errorf("%q", got)
	}
}

// TestServerWithSlowHandshakeIsUsed: one that needs longer for a handshake than is waited for it is found nevertheless,
// as over a line on which a packet needs a second.
func TestServerWithSlowHandshakeIsUsed(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	config := echo.Config(t, echo.Ours, "127.0.0.1")
	go testenv.Accept(l, func(c net.Conn) {
		go func() {
			defer c.Close()
			time.Sleep(balancer.DialTimeout + balancer.DialTimeout/2) // real time: this is the slow line itself
			s := tls.Server(c, config)
			line := make([]byte, 3)
			if _, err := s.Read(line); err == nil {
				_, _ = fmt.Fprintf(s, "slow %s", line)
			}
		}()
	})
	balancer.FindsAtLast(t, balancer.StartUsual(t, balancer.Options{Server: l.Addr().String()}), "slow")
}

// TestStatusSaysWhyServersAreRefused: while no server's certificate is accepted, status says which is refused and why.
func TestStatusSaysWhyServersAreRefused(t *testing.T) {
	foreign := echo.NewOf(t, echo.Others, "foreign", "127.0.0.1:0", "127.0.0.1")
	real := echo.New(t, "real", "127.0.0.1:0")
	board := status.NewBoard(time.Now)
	b := balancer.StartUsual(t, balancer.Options{Server: foreign.Address, Part: board.Part("servers")})
	testenv.Equal(t, board.Components()[0].State, status.Waiting, "at first:")
	c := balancer.ConnectTo(t, b)
	echo.Ended(t, c)
	testenv.Eventually(t, echo.Patience, "the reason in status", func() error {
		now := board.Components()[0]
		if now.State != status.Degraded || !strings.Contains(now.Message, "this machine refuses their certificates: it was signed by CN=") {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	testenv.NoError(t, b.Set([]string{real.Address}))
	balancer.FindsAtLast(t, b, "real")
	testenv.Equal(t, board.Components()[0].State, status.Running, "with a server:")
}
