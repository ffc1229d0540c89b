// SPDX-License-Identifier: Apache-2.0

package balancer_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(echo.Main(m)) }

// TestConnectionsEndWithTheirServer: connections end with their server's, and the next ones go to another one and stay
// there.
func TestConnectionsEndWithTheirServer(t *testing.T) {
	one, _, b := balancer.TwoServers(t)
	c := balancer.WantAnswer(t, b, "one")
	one.Stop()
	testenv.Fails(t, testenv.Err(c.Ask()), "a connection outlives its server")
	balancer.WantAnswer(t, b, "two")
	echo.New(t, "one", one.Address)
	balancer.WantAnswer(t, b, "two")
}

// TestUnresponsiveMachineLosesConnections: a server that accepts nothing any more and closes nothing loses its
// connections.
func TestUnresponsiveMachineLosesConnections(t *testing.T) {
	one, _, b := balancer.TwoServers(t)
	idle := balancer.WantAnswer(t, b, "one")
	one.StopAccepting()
	if _, err := idle.Lines.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want the connection's end", err)
	}
	balancer.WantAnswer(t, b, "two")
}

// TestConnectionWaitsForAServer: a connection that comes while no server can be used waits for one, and its client
// notices nothing. Before a server has ever been reached it is turned away.
func TestConnectionWaitsForAServer(t *testing.T) {
	one := echo.New(t, "one", "127.0.0.1:0")
	b := balancer.Start(t, balancer.Options{Server: one.Address})
	one.Stop()
	if got, err := balancer.ConnectTo(t, b).Ask(); err == nil {
		t.Errorf("%q of no connection", got)
	}
	one = echo.New(t, "one", one.Address)
	balancer.WantAnswer(t, b, "one")
	one.Stop()
	answer := make(chan error, 1)
	held := balancer.ConnectTo(t, b)
	go func() {
		_, err := held.Ask()
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("the connection was not held: %v", err)
	case <-time.After(2 * balancer.HoldPause): // what must not happen has no event to wait for
	}
	echo.New(t, "one", one.Address)
	testenv.Check(t, <-answer)
}
