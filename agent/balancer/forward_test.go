// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Forward(ctx, l) }()
	ask := func() (string, error) {
		c, err := net.Dial("tcp", l.Addr().String())
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
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// The next start has it from the file.
	again := start(t, Options{Server: given.address, File: file})
	if got := again.namedServers(); len(got) != 1 || got[0] != named.address {
		t.Errorf("named servers after a start: %v", got)
	}
}

// TestUnauthenticatedClientsKeepServer: whoever can reach the machine's open port needs no credentials to make a server
// hang up, or to leave before it has said anything. The node's own connections to that server go on, and nobody asks it
// for its certificate.
func TestUnauthenticatedClientsKeepServer(t *testing.T) {
	for what, first := range map[string]bool{"the server ends it": false, "the client ends it": true} {
		t.Run(what, func(t *testing.T) {
			one, two, b := heardServers(t)
			idle := wantAnswer(t, b, "one")
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- b.Forward(ctx, l) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			connections := 0
			wantKept(t, idle, func() { sendPlaintext(t, l.Addr().String(), first); connections++ })
			if got := len(one.conns) + len(two.conns); got != connections+1 {
				t.Errorf("the servers have had %d connections, want %d", got, connections+1)
			}
		})
	}
}
