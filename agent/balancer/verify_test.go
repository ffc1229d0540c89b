// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnresponsiveServerIsLeftWithinTwoSeconds: pings and looks fall on the same moments. However long answers take, a
// server that gives them is not left, and one that falls silent is two seconds later, while another one answers.
func TestUnresponsiveServerIsLeftWithinTwoSeconds(t *testing.T) {
	for _, usual := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			b, closed := oneInUse(t)
			b.Replied("one", true)
			b.Replied("other", true)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go b.watch(ctx)
			var last time.Time
			for i := range 61 {
				moment := time.Now().Add(timers.Until(checkEvery))
				trip := usual
				if i%7 == 3 {
					trip = 900 * time.Millisecond
				}
				time.Sleep(time.Until(moment) + time.Millisecond) // fake time
				if i%2 == 0 {                                     // which of them is slow does not matter
					b.Replied("other", true)
				}
				time.Sleep(trip - time.Millisecond) // fake time
				last = time.Now()
				b.Replied("one", true)
				b.Replied("other", true)
			}
			leaves(t, closed, false, "a server is left that answers after %v, and after 0.9 s now and then", usual)
			for range 10 {
				time.Sleep(timers.Until(checkEvery) + usual) // fake time
				b.Replied("other", true)
			}
			if took := (<-closed).Sub(last); took > 2*time.Second {
				t.Errorf("a server that answered after %v is left %v after its last answer", usual, took)
			}
		})
	}
}

// TestDistantServersAreKept: servers over lines on which an answer takes a second or two, now more, now less, are not
// left.
func TestDistantServersAreKept(t *testing.T) {
	seed := testenv.Seed(t)
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 0))
		b, closed := oneInUse(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		var running sync.WaitGroup
		for _, server := range b.servers {
			trips := rand.New(rand.NewPCG(random.Uint64(), 0))
			b.Replied(server, true)
			running.Go(func() { // as nodetunnel pings
				for ctx.Err() == nil {
					next := time.Now().Add(timers.Until(time.Second))
					time.Sleep(1100*time.Millisecond + time.Duration(trips.IntN(800))*time.Millisecond) // fake time
					b.Replied(server, true)
					time.Sleep(time.Until(next)) // fake time
				}
			})
		}
		time.Sleep(30 * time.Second) // fake time: what is usual is known after some answers
		b.watch(ctx)
		running.Wait()
		leaves(t, closed, false, "a server that answers is left")
	})
}

// TestUnresponsiveAddressesDelayAStartOnce: however many addresses are named at which nothing replies, the first
// connection of a start need not wait for each.
func TestUnresponsiveAddressesDelayAStartOnce(t *testing.T) {
	named := []string{}
	for range maxServers - 2 {
		named = append(named, echo.Mute(t, "127.0.0.1:0"))
	}
	real := echo.New(t, "real", "127.0.0.1:0")
	b := startUsual(t, Options{Server: echo.Mute(t, "127.0.0.1:0")})
	testenv.NoError(t, b.Set(append(named, real.Address)))
	findsAtLast(t, b, "real")
	synctest.Test(t, func(t *testing.T) {
		b, _ := oneInUse(t)
		for _, address := range named {
			b.handshakes[address] = &runningHandshake{done: make(chan struct{})} // a request to it gets no answer
		}
		began := time.Now()
		var going sync.WaitGroup
		if _, server, err := b.dial(t.Context(), named, &going, anyServer); err == nil {
			t.Errorf("%s was used", server)
		}
		going.Wait()
		if took := time.Since(began); took != 2*dialTimeout { // that of the first, and that of all others
			t.Errorf("%d addresses at which nothing replies cost %v", len(named), took)
		}
	})
}

// TestUnresponsiveServerIsLeftForResponsiveOne: a server that is blocked is left before it was asked twice, if the node
// hears another one, and that one is tried first from then on.
func TestUnresponsiveServerIsLeftForResponsiveOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		said := make(reasons, 100) // more than it says
		b.o.Logger = slog.New(slog.NewTextHandler(said, nil))
		b.servers = []string{"one", "two", "other"}
		b.Replied("one", true)
		b.handshakes["one"] = &runningHandshake{done: make(chan struct{})} // a request to it gets no answer
		watching(t, b)
		for left := false; !left; {
			b.Replied("other", true)
			select {
			case <-closed:
				left = true
			case <-time.After(recentReply / 4): // fake time
			}
		}
		if line := <-said; !strings.Contains(line, "is unresponsive while another one answers") { // not because it was asked
			t.Error(line)
		}
		testenv.Equal(t, b.candidates()[0], "other", "is tried first:")
	})
}

// reasons has the lines of a log.
type reasons chan string

func (r reasons) Write(line []byte) (int, error) {
	r <- string(line)
	return len(line), nil
}

// TestGossipCannotDisplaceProvedServers: who has the gossip key says that the cluster's server is an agent, and names
// many that are none. What has shown itself to be a server stays, with one that is not in use.
func TestGossipCannotDisplaceProvedServers(t *testing.T) {
	one, two := echo.New(t, "one", "127.0.0.1:0"), echo.New(t, "two", "127.0.0.1:0")
	b := start(t, Options{Server: "127.0.0.1:1"})
	testenv.NoError(t, b.Set([]string{one.Address, two.Address}))
	wantAnswer(t, b, "one")
	b.Replied(two.Address, true) // the node's own connection to it
	var invented []string
	for i := range 3 * maxServers {
		invented = append(invented, fmt.Sprintf("192.0.2.%d:6443", i+1))
	}
	b.SetLastResort([]string{one.Address, two.Address})
	testenv.NoError(t, b.Set(invented))
	b.SetLastResort([]string{one.Address, two.Address})
	got := b.Servers()
	testenv.True(t, len(got) <= maxServers && slices.Contains(got, one.Address) && slices.Contains(got, two.Address),
		"%d are known: %q", len(got), got)
	if got := b.candidates()[:2]; !slices.Contains(got, one.Address) || !slices.Contains(got, two.Address) {
		t.Errorf("these are tried first: %q", got)
	}
	one.Stop()
	wantAnswer(t, b, "two")
}

// TestResponsiveServerGetsNoHandshake: a server that answers over the node's connection to it sees no handshake of the
// balancer's, neither for a new connection nor while one is open.
func TestResponsiveServerGetsNoHandshake(t *testing.T) {
	one := echo.New(t, "one", "127.0.0.1:0")
	b := startStill(t, Options{Server: one.Address})
	b.Replied(one.Address, true) // over the node's connection
	wantAnswer(t, b, "one")
	time.Sleep(2*checkEvery + probeEvery) // the balancer has looked, and would have asked, by then: what must not happen has no event to wait for
	testenv.True(t, len(one.Conns) == 1, "the server has had %d connections", len(one.Conns))
}

// sendPlaintext connects to an address, sends what is no TLS, and waits until the server closes the connection. With
// first, it closes the connection itself.
func sendPlaintext(t *testing.T, address string, first bool) {
	t.Helper()
	c := testenv.Must(net.Dial("tcp", address))(t)
	defer c.Close()
	testenv.NoError(t, c.SetDeadline(time.Now().Add(echo.Patience)))
	testenv.Must(io.WriteString(c, "no TLS, is it?"))(t)
	if first {
		return
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v: want the connection's end without a word", n, err)
	}
}

// wantKept has something done for as long as it takes to look after the servers some times, and wants a connection to
// be there still.
func wantKept(t *testing.T, c *echo.Client, do func()) {
	t.Helper()
	for end := time.Now().Add(3*checkEvery + checkEvery/2); time.Now().Before(end); {
		do()
		time.Sleep(checkEvery) // what must not happen has no event to wait for; what has been done is looked at once before it is done again
	}
	if got, err := c.Ask(); err != nil {
		t.Errorf("%q, %v: the connection to a server that is well was closed", got, err)
	}
}

// TestClientsWithoutTLSKeepTheirServer: a program that can reach the API's local address, or the machine's open port,
// sends what is no TLS, and the server closes the connection without a word, or it does so itself. It needs no
// credentials for that, and the server is well: other connections to it go on, although another server answers too. A
// client of the open port does not make the balancer ask the server for its certificate.
func TestClientsWithoutTLSKeepTheirServer(t *testing.T) {
	for where, address := range map[string]func(*testing.T, *Balancer) string{
		"local address": func(_ *testing.T, b *Balancer) string { return b.listener.Addr().String() },
		"open port":     forwarding,
	} {
		for who, first := range map[string]bool{"the server ends it": false, "the program ends it": true} {
			t.Run(where+", "+who, func(t *testing.T) {
				one, two, b := heardServers(t)
				idle, at := wantAnswer(t, b, "one"), address(t, b)
				connections := 1
				wantKept(t, idle, func() { sendPlaintext(t, at, first); connections++ })
				if got := len(one.Conns) + len(two.Conns); got != connections && where == "open port" {
					t.Errorf("the servers have had %d connections, want %d", got, connections)
				}
				wantAnswer(t, b, "one")
			})
		}
	}
}

// TestPortProbesCostNoHandshake: a client that connects and leaves without a word, as a program does that looks whether
// the port is open, costs the server no handshake.
func TestPortProbesCostNoHandshake(t *testing.T) {
	one, _, b := heardServers(t)
	const times = 5
	for range times {
		c := testenv.Must(net.Dial("tcp", b.listener.Addr().String()))(t)
		testenv.NoError(t, c.(*net.TCPConn).CloseWrite())
		_, _ = c.Read(make([]byte, 1)) // the end has come back from the server
		_ = c.Close()
	}
	wantAnswer(t, b, "one")
	testenv.True(t, len(one.Conns) == times+1, "the server has had %d connections, want %d", len(one.Conns), times+1)
}

// TestStaleConnectionsCloseWhenMachineReturns: those from before a server's machine could not be reached are closed
// when it can be again, and the server stays the one in use.
func TestStaleConnectionsCloseWhenMachineReturns(t *testing.T) {
	_, _, b := twoServers(t)
	old := wantAnswer(t, b, "one")
	b.dropStale(b.Servers()[0], &probeState{})
	testenv.Check(t, testenv.Err(old.Ask()), "there always was a way to its server")
	b.dropStale(b.Servers()[0], &probeState{hostUnreachable: true})
	echo.Ended(t, old)
	wantAnswer(t, b, "one")
}

// TestDialFailureIsUnreachable: a machine whose kernel refuses, or accepts and whose server says nothing, is reached.
func TestDialFailureIsUnreachable(t *testing.T) {
	gone := echo.New(t, "gone", "127.0.0.1:0")
	gone.Stop()
	// As long as a busy machine needs to connect to itself; one that says nothing costs all of that.
	b := startAs(t, Options{Server: gone.Address}, func(b *Balancer) { b.testTimeout = 10 * time.Second })
	for what, address := range map[string]string{"it refuses": gone.Address, "it says nothing": echo.Mute(t, "127.0.0.1:0")} {
		if err := b.prove(t.Context(), address); err == nil || hostIsUnreachable(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	late, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if err := b.prove(late, echo.Mute(t, "127.0.0.1:0")); !hostIsUnreachable(err) {
		t.Errorf("no server has answered within the time: %v", err)
	}
	testenv.True(t, hostIsUnreachable(fmt.Errorf("a server: %w", error(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}))), "there is no route")
}
