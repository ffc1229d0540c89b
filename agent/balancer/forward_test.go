// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestForwardedConnectionsGoToNamedServersOnly: another machine's connection goes to a server that the cluster has
// named, and never to one that only the operator has.
func TestForwardedConnectionsGoToNamedServersOnly(t *testing.T) {
	named, given := echo.New(t, "named", "127.0.0.1:0"), echo.NewOf(t, echo.Ours, "given", "127.0.0.1:0", "192.0.2.1") // an agent that passes on
	file := filepath.Join(t.TempDir(), "servers.json")
	b := start(t, Options{Server: given.Address, File: file})
	at := forwarding(t, b)
	ask := func() (string, error) {
		c := testenv.Must(net.Dial("tcp", at))(t)
		t.Cleanup(func() { c.Close() })
		testenv.NoError(t, c.SetDeadline(time.Now().Add(echo.Patience)))
		return echo.NewClient(c).Ask()
	}
	if got, err := ask(); err == nil {
		t.Errorf("passed on before any server is known: %q", got)
	}
	wantAnswer(t, b, "given") // this machine's own connections go there
	testenv.NoError(t, b.Set([]string{named.Address}))
	testenv.Equal(t, testenv.Must(ask())(t), "named hi\n", "")
	// The address that was given turns out to be an agent's.
	b.SetLastResort([]string{given.Address})
	wantAnswer(t, b, "named")
	testenv.NoError(t, b.Set([]string{named.Address}))
	testenv.Equal(t, len(b.Servers()), 1, "an agent is taken for a server:")
	// With no server known at all the address that was given is better than none.
	b.SetLastResort([]string{given.Address, named.Address})
	testenv.Equal(t, len(b.Servers()), 1, "nothing is left:")
	// The next start has it from the file.
	again := start(t, Options{Server: given.Address, File: file})
	if got := again.namedServers(); len(got) != 1 || got[0] != named.Address {
		t.Errorf("named servers after a start: %v", got)
	}
}

// TestForwardedConnectionsOfOneSourceMakeRoom: a machine that holds as many connections as are forwarded keeps no other
// machine out. Its own oldest is closed.
func TestForwardedConnectionsOfOneSourceMakeRoom(t *testing.T) {
	server := echo.New(t, "server", "127.0.0.1:0")
	go func() {
		for { // the server waits when too many are not taken
			select {
			case <-server.Conns:
			case <-t.Context().Done():
				return
			}
		}
	}()
	b := start(t, Options{Server: server.Address})
	testenv.NoError(t, b.Set([]string{server.Address}))
	wantAnswer(t, b, "server")
	at := forwarding(t, b)
	dial := func(from string) net.Conn {
		c := testenv.Must((&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", at))(t)
		t.Cleanup(func() { c.Close() })
		testenv.NoError(t, c.SetDeadline(time.Now().Add(echo.Patience)))
		return c
	}
	oldest := dial("127.0.0.1")
	for range maxForwarded - 1 {
		dial("127.0.0.1")
	}
	other := echo.NewClient(dial("127.0.0.2"))
	testenv.Equal(t, testenv.Must(other.Ask())(t), "server hi\n", "a machine beside one with many connections:")
	testenv.Fails(t, testenv.Err(oldest.Read(make([]byte, 1))), "the oldest of too many is open")
	dial("127.0.0.1")
	testenv.Equal(t, testenv.Must(other.Ask())(t), "server hi\n", "after one more of the same machine:")
}
