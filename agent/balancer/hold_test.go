// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// passing hands connections to a balancer whose only server has just ended. What is returned makes one: its client's
// end, and a channel that is closed when the balancer is done with it.
func passing(t *testing.T) func() (client *net.TCPConn, passed chan struct{}) {
	t.Helper()
	one := newServer(t, "one", "127.0.0.1:0")
	b := start(t, Options{Server: one.address})
	wantAnswer(t, b, "one")
	one.stop()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	return func() (*net.TCPConn, chan struct{}) {
		c := testenv.Must(net.Dial("tcp", l.Addr().String()))(t)
		t.Cleanup(func() { c.Close() })
		accepted := testenv.Must(l.Accept())(t)
		passed := make(chan struct{})
		go func() {
			defer close(passed)
			b.pass(t.Context(), accepted)
		}()
		return c.(*net.TCPConn), passed
	}
}

// TestWaitingConnectionsAreBounded: however many connections come while no server can be used, no more than some wait
// for one.
func TestWaitingConnectionsAreBounded(t *testing.T) {
	pass := passing(t)
	const many = 2 * mostWaiting
	turnedAway := make(chan struct{}, many)
	for range many {
		_, passed := pass()
		go func() { <-passed; turnedAway <- struct{}{} }()
	}
	for range many - mostWaiting {
		<-turnedAway
	}
	if n := len(turnedAway); n > 0 {
		t.Errorf("%d of %d that could wait do not", n, mostWaiting)
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

// TestServerWithSlowHandshakeIsUsed: one that needs longer for a handshake than is waited for it is found nevertheless,
// as over a line on which a packet needs a second.
func TestServerWithSlowHandshakeIsUsed(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	config := serverConfig(t, ours, "127.0.0.1")
	go testenv.Accept(l, func(c net.Conn) {
		go func() {
			defer c.Close()
			time.Sleep(dialTimeout + dialTimeout/2) // real time: this is the slow line itself
			s := tls.Server(c, config)
			line := make([]byte, 3)
			if _, err := s.Read(line); err == nil {
				_, _ = fmt.Fprintf(s, "slow %s", line)
			}
		}()
	})
	findsAtLast(t, startUsual(t, Options{Server: l.Addr().String()}), "slow")
}

// TestStoredServerListIsBounded: what is in the file is no more than a Balancer would have kept.
func TestStoredServerListIsBounded(t *testing.T) {
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("192.0.2.1:%d", i+1))
	}
	for n, want := range map[int]int{100: most, 3000: most, len(many) * 100: 1} {
		var list []string
		for len(list) < n {
			list = append(list, many...)
		}
		data := testenv.Must(json.Marshal(list[:n]))(t)
		file := filepath.Join(t.TempDir(), "servers.json")
		testenv.NoError(t, os.WriteFile(file, data, 0o600))
		if got := start(t, Options{Server: "127.0.0.1:1", File: file}).Servers(); len(got) > want || got[0] != "127.0.0.1:1" {
			t.Errorf("of %d in the file: %d, %q first, want %d", n, len(got), got[0], want)
		}
	}
}

// TestDamagedListFallsBackToNamedServer: whatever is in the file, the server that the operator named is used.
func TestDamagedListFallsBackToNamedServer(t *testing.T) {
	one := newServer(t, "one", "127.0.0.1:0")
	for _, text := range []string{"", "null", "[", `[""]`, `["x",null]`, `{"a":1}`, `["no address","[::1","300.0.0.1:5","127.0.0.1:0","[fe80::1%nowhere]:6443","127.0.0.1:70000",":"]`, "\x00\x00"} {
		file := filepath.Join(t.TempDir(), "servers.json")
		testenv.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		b := start(t, Options{Server: one.address, File: file})
		wantAnswer(t, b, "one")
		testenv.Check(t, b.Set([]string{one.address}), "%q", text)
		if got := b.Servers(); !slices.Contains(got, one.address) {
			t.Errorf("%q: %q", text, got)
		}
	}
}
