// SPDX-License-Identifier: Apache-2.0

package relay_test

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/coracle-k8s/coracle/internal/relay"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// pair is a connection and its other end.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	c := testenv.Must(net.Dial("tcp", l.Addr().String()))(t)
	accepted := testenv.Must(l.Accept())(t)
	t.Cleanup(func() { c.Close(); accepted.Close() })
	return accepted.(*net.TCPConn), c.(*net.TCPConn)
}

// TestEndOfOneWayLeavesTheOtherOpen: what is said arrives, the end of one way leaves the other open, and the call comes
// where the second one ends first without a word.
func TestEndOfOneWayLeavesTheOtherOpen(t *testing.T) {
	for name, test := range map[string]struct {
		say    func(t *testing.T, cancel func(), client, server *net.TCPConn)
		silent int
	}{
		"the client ends its way first": {func(t *testing.T, _ func(), client, server *net.TCPConn) {
			testenv.Must(io.WriteString(client, "bye"))(t)
			testenv.NoError(t, client.CloseWrite())
			testenv.Equal(t, string(testenv.Must(io.ReadAll(server))(t)), "bye", "the server has read")
			testenv.Must(io.WriteString(server, "good-bye"))(t)
			testenv.NoError(t, server.CloseWrite())
			testenv.Equal(t, string(testenv.Must(io.ReadAll(client))(t)), "good-bye", "the client has read")
		}, 0},
		"the client leaves without a word": {func(t *testing.T, _ func(), client, server *net.TCPConn) {
			testenv.NoError(t, client.CloseWrite())
			testenv.Must(io.ReadAll(server))(t)
			testenv.NoError(t, server.Close())
		}, 0},
		"the server leaves without a word": {func(t *testing.T, _ func(), client, server *net.TCPConn) {
			testenv.NoError(t, server.CloseWrite())
			testenv.Must(io.ReadAll(client))(t)
			testenv.NoError(t, client.Close())
		}, 1},
		"the context ends": {func(t *testing.T, cancel func(), client, server *net.TCPConn) {
			cancel()
			for _, c := range []io.Reader{client, server} {
				if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
					t.Errorf("%d bytes, %v, want the connection's end", n, err)
				}
			}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, client := pair(t)
			b, server := pair(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			silent, done := 0, make(chan struct{})
			go func() {
				defer close(done)
				relay.Join(ctx, a, b, func() { silent++ })
			}()
			test.say(t, cancel, client, server)
			<-done
			testenv.Equal(t, silent, test.silent, "ended first without a word")
		})
	}
}
