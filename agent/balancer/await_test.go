// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"errors"
	"net"
	"testing"

	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// passing hands connections to a balancer whose only server has just ended. What is returned makes one: its client's
// end, and a channel that is closed when the balancer is done with it.
func passing(t *testing.T) func() (client *net.TCPConn, passed chan struct{}) {
	t.Helper()
	one := echo.New(t, "one", "127.0.0.1:0")
	b := start(t, Options{Server: one.Address})
	wantAnswer(t, b, "one")
	one.Stop()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	return func() (*net.TCPConn, chan struct{}) {
		c := testenv.Must(net.Dial("tcp", l.Addr().String()))(t)
		t.Cleanup(func() { c.Close() })
		accepted := testenv.Must(l.Accept())(t)
		passed := make(chan struct{})
		go func() {
			defer close(passed)
			b.joinToServer(t.Context(), accepted)
		}()
		return c.(*net.TCPConn), passed
	}
}

// TestWaitingConnectionsAreBounded: however many connections come while no server can be used, no more than some wait
// for one.
func TestWaitingConnectionsAreBounded(t *testing.T) {
	pass := passing(t)
	const many = 2 * maxWaiting
	turnedAway := make(chan struct{}, many)
	for range many {
		_, passed := pass()
		go func() { <-passed; turnedAway <- struct{}{} }()
	}
	for range many - maxWaiting {
		<-turnedAway
	}
	if n := len(turnedAway); n > 0 {
		t.Errorf("%d of %d that could wait do not", n, maxWaiting)
	}
}

// TestHeldConnectionEndsWithItsClient: a connection that is held ends with its client, and others wait on.
func TestHeldConnectionEndsWithItsClient(t *testing.T) {
	for what, leave := range map[string]func(c *net.TCPConn) error{
		"closed":               (*net.TCPConn).Close,
		"half closed":          (*net.TCPConn).CloseWrite,
		"reset":                func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) },
		"after it said enough": func(c *net.TCPConn) error { _, err := c.Write([]byte("hello")); return errors.Join(err, c.Close()) },
	} {
		t.Run(what, func(t *testing.T) {
			pass := passing(t)
			client, passed := pass()
			_, stays := pass()
			testenv.NoError(t, leave(client))
			<-passed
			select {
			case <-stays:
				t.Error("it ended no sooner than one whose client waits")
			default:
			}
		})
	}
}
