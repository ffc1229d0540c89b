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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mute takes connections and says nothing: what a blocked process looks like, since its kernel accepts.
func mute(t *testing.T, address string) string {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", address))(t)
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func ended(t *testing.T, c *client) {
	t.Helper()
	if _, err := c.lines.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want the connection's end", err)
	}
}

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

// TestForeignServersAreNotUsed: what accepts connections and is no server of this cluster is not used, wherever it
// stands in the list.
func TestForeignServersAreNotUsed(t *testing.T) {
	foreign := newServerOf(t, others, "foreign", "127.0.0.1:0", "127.0.0.1")
	real := newServer(t, "real", "127.0.0.1:0")
	b := startUsual(t, Options{Server: foreign.address})
	testenv.NoError(t, b.Set([]string{mute(t, "127.0.0.1:0"), foreign.address, real.address}))
	findsAtLast(t, b, "real")
	testenv.Equal(t, b.Servers()[0], real.address, "is the one in use:")
}

// TestUnresponsiveAddressesDelayAStartOnce: however many addresses are named at which nothing replies, the first
// connection of a start need not wait for each.
func TestUnresponsiveAddressesDelayAStartOnce(t *testing.T) {
	named := []string{}
	for range most - 2 {
		named = append(named, mute(t, "127.0.0.1:0"))
	}
	real := newServer(t, "real", "127.0.0.1:0")
	b := startUsual(t, Options{Server: mute(t, "127.0.0.1:0")})
	testenv.NoError(t, b.Set(append(named, real.address)))
	findsAtLast(t, b, "real")
	synctest.Test(t, func(t *testing.T) {
		b, _ := oneInUse(t)
		for _, address := range named {
			b.proving[address] = &proving{done: make(chan struct{})} // a request to it gets no answer
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

// TestForeignServerAtKnownAddress: a server's address is another machine's by now, or the server does not answer. Its
// connections are closed, and what comes then goes to another one.
func TestForeignServerAtKnownAddress(t *testing.T) {
	for what, move := range map[string]func(t *testing.T, address string){
		"another cluster's server":   func(t *testing.T, address string) { newServerOf(t, others, "foreign", address, "127.0.0.1") },
		"a server without an answer": func(t *testing.T, address string) { mute(t, address) },
	} {
		t.Run(what, func(t *testing.T) {
			one, _, b := twoServersOf(t, startUsual)
			var idle *client
			testenv.Eventually(t, patience, "an answer of one", func() error {
				b.Replied(one.address, true) // so that it need not show its certificate in the usual time
				idle = connectTo(t, b)
				got, err := idle.ask()
				if err == nil && got != "one hi\n" {
					err = errors.New(got)
				}
				return err
			})
			one.stopAccepting()
			move(t, one.address)
			ended(t, idle)
			findsAtLast(t, b, "two")
		})
	}
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
		b.proving["one"] = &proving{done: make(chan struct{})} // a request to it gets no answer
		watching(t, b)
		for left := false; !left; {
			b.Replied("other", true)
			select {
			case <-closed:
				left = true
			case <-time.After(answersNow / 4): // fake time
			}
		}
		if line := <-said; !strings.Contains(line, "is unresponsive while another one answers") { // not because it was asked
			t.Error(line)
		}
		testenv.Equal(t, b.candidates()[0], "other", "is tried first:")
	})
}

// TestClosedConnectionMovesToResponsiveServer: a server that closes the node's own connection is left if another one
// answers the node, and kept if none does.
func TestClosedConnectionMovesToResponsiveServer(t *testing.T) {
	one, two, b := twoServers(t)
	idle := wantAnswer(t, b, "one")
	b.Ended(one.address)
	wantAnswer(t, b, "one")
	for b.Servers()[0] == one.address { // what answered a moment ago may be too long ago on a busy machine
		b.Replied(two.address, true)
		b.Ended(one.address)
	}
	ended(t, idle)
	wantAnswer(t, b, "two")
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
	one, two := newServer(t, "one", "127.0.0.1:0"), newServer(t, "two", "127.0.0.1:0")
	b := start(t, Options{Server: "127.0.0.1:1"})
	testenv.NoError(t, b.Set([]string{one.address, two.address}))
	wantAnswer(t, b, "one")
	b.Replied(two.address, true) // the node's own connection to it
	var invented []string
	for i := range 3 * most {
		invented = append(invented, fmt.Sprintf("192.0.2.%d:6443", i+1))
	}
	b.Exclude([]string{one.address, two.address})
	testenv.NoError(t, b.Set(invented))
	b.Exclude([]string{one.address, two.address})
	got := b.Servers()
	if len(got) > most || !slices.Contains(got, one.address) || !slices.Contains(got, two.address) {
		t.Errorf("%d are known: %q", len(got), got)
	}
	if got := b.candidates()[:2]; !slices.Contains(got, one.address) || !slices.Contains(got, two.address) {
		t.Errorf("these are tried first: %q", got)
	}
	one.stop()
	wantAnswer(t, b, "two")
}

// TestExcludedIsBetterThanNone: at a start nothing has shown itself yet. The only server that there is is said to be an
// agent, and others are named that are none.
func TestExcludedIsBetterThanNone(t *testing.T) {
	one := newServer(t, "one", "127.0.0.1:0")
	b := start(t, Options{Server: one.address})
	b.Exclude([]string{one.address})
	testenv.NoError(t, b.Set([]string{"127.0.0.1:1", "127.0.0.1:2"}))
	b.Exclude([]string{one.address})
	if got := b.Servers(); slices.Contains(got, one.address) {
		t.Errorf("%q", got)
	}
	wantAnswer(t, b, "one")
	if got := b.Servers(); !slices.Contains(got, one.address) {
		t.Errorf("it has shown itself, and is left out: %q", got)
	}
}

// TestResponsiveServerGetsNoHandshake: a server that answers over the node's connection to it sees no handshake of the
// balancer's, neither for a new connection nor while one is open.
func TestResponsiveServerGetsNoHandshake(t *testing.T) {
	one := newServer(t, "one", "127.0.0.1:0")
	b := startStill(t, Options{Server: one.address})
	b.Replied(one.address, true) // over the node's connection
	wantAnswer(t, b, "one")
	time.Sleep(2*checkEvery + probeEvery) // the balancer has looked, and would have asked, by then: what must not happen has no event to wait for
	if got := len(one.conns); got != 1 {
		t.Errorf("the server has had %d connections", got)
	}
}

// TestStoppingServerCostsOneTry: one that still answers on the node's own connection and closes each connection to
// its API costs one try.
func TestStoppingServerCostsOneTry(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	go testenv.Accept(l, func(c net.Conn) { _ = c.Close() })
	two := newServer(t, "two", "127.0.0.1:0")
	b := startStill(t, Options{Server: l.Addr().String()})
	testenv.NoError(t, b.Set([]string{l.Addr().String(), two.address}))
	b.Replied(l.Addr().String(), true)
	if got, err := connectTo(t, b).ask(); err == nil {
		t.Fatalf("%q", got)
	}
	b.Replied(l.Addr().String(), true) // which says nothing of its API
	wantAnswer(t, b, "two")
	b.Replied(l.Addr().String(), true)
	wantAnswer(t, b, "two")
}

// sendPlaintext connects to an address, sends what is no TLS, and waits until the server closes the connection. With
// first, it closes the connection itself.
func sendPlaintext(t *testing.T, address string, first bool) {
	t.Helper()
	c := testenv.Must(net.Dial("tcp", address))(t)
	defer c.Close()
	testenv.NoError(t, c.SetDeadline(time.Now().Add(patience)))
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
func wantKept(t *testing.T, c *client, do func()) {
	t.Helper()
	for end := time.Now().Add(3*checkEvery + checkEvery/2); time.Now().Before(end); {
		do()
		time.Sleep(checkEvery) // what must not happen has no event to wait for; what has been done is looked at once before it is done again
	}
	if got, err := c.ask(); err != nil {
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
				if got := len(one.conns) + len(two.conns); got != connections && where == "open port" {
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
	if got := len(one.conns); got != times+1 {
		t.Errorf("the server has had %d connections, want %d", got, times+1)
	}
}

// TestNothingIsForwardedBeforeJoining: without the cluster's authority nothing is passed on.
func TestNothingIsForwardedBeforeJoining(t *testing.T) {
	one := newServer(t, "one", "127.0.0.1:0")
	b := start(t, Options{Server: one.address, ServerCAFile: filepath.Join(t.TempDir(), "none")})
	if got, err := connectTo(t, b).ask(); err == nil {
		t.Errorf("%q", got)
	}
}
