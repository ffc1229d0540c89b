// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestForwardedConnectionsGoToNamedServersOnly: another machine's connection goes to a server that the cluster has
// named, and never to one that only the operator has.
func TestForwardedConnectionsGoToNamedServersOnly(t *testing.T) {
	named, given := newServer(t, "named", "127.0.0.1:0"), newServerOf(t, ours, "given", "127.0.0.1:0", "192.0.2.1") // an agent that passes on
	file := filepath.Join(t.TempDir(), "servers.json")
	b := start(t, Options{Server: given.address, File: file})
	at := forwarding(t, b)
	ask := func() (string, error) {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return newClient(c).ask()
	}
	if got, err := ask(); err == nil {
		t.Errorf("passed on before any server is known: %q", got)
	}
	wantAnswer(t, b, "given") // this machine's own connections go there
	if err := b.Set([]string{named.address}); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(); err != nil || got != "named hi\n" {
		t.Errorf("%q, %v", got, err)
	}
	// The address that was given turns out to be an agent's.
	b.Exclude([]string{given.address})
	wantAnswer(t, b, "named")
	if err := b.Set([]string{named.address}); err != nil {
		t.Fatal(err)
	}
	if got := b.Servers(); len(got) != 1 {
		t.Errorf("an agent is taken for a server: %v", got)
	}
	// With no server known at all the address that was given is better than none.
	b.Exclude([]string{given.address, named.address})
	if got := b.Servers(); len(got) != 1 {
		t.Errorf("nothing is left: %v", got)
	}
	// The next start has it from the file.
	again := start(t, Options{Server: given.address, File: file})
	if got := again.namedServers(); len(got) != 1 || got[0] != named.address {
		t.Errorf("named servers after a start: %v", got)
	}
}
