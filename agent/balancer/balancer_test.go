// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const patience = 2 * time.Minute

// server answers each line with its name and the line, over TLS as a server of the cluster.
type server struct {
	t        *testing.T
	name     string
	address  string
	listener net.Listener
	conns    chan net.Conn
}

func newServer(t *testing.T, name, address string) *server {
	t.Helper()
	return newServerOf(t, ours, name, address, "127.0.0.1")
}

// newServerOf has a certificate of that authority for a host.
func newServerOf(t *testing.T, ca *testca.Authority, name, address, host string) *server {
	t.Helper()
	config := serverConfig(t, ca, host)
	l, err := net.Listen("tcp", testenv.Address(t, address)) // which may be listened on again
	testenv.NoError(t, err)
	s := &server{t: t, name: name, address: l.Addr().String(), listener: l, conns: make(chan net.Conn, 100)}
	t.Cleanup(s.stop)
	go testenv.Accept(l, func(c net.Conn) {
		s.conns <- c
		go func() {
			c := tls.Server(c, config)
			defer c.Close()
			lines := bufio.NewReader(c)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s", name, line)
			}
		}()
	})
	return s
}

// ours is the cluster's authority, with its certificate in oursFile; others are another cluster's.
var (
	ours, others *testca.Authority
	oursFile     string
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "balancer")
	if err != nil {
		panic(err)
	}
	ours, err = testca.New(dir)
	if err != nil {
		panic(err)
	}
	others, err = testca.New(filepath.Join(dir, "others"))
	if err != nil {
		panic(err)
	}
	oursFile = filepath.Join(dir, "ca.crt")
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func serverConfig(t testing.TB, ca *testca.Authority, host string) *tls.Config {
	t.Helper()
	files := testenv.Must(ca.Issue(protocol.ServerName, host))(t)
	pair := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

// stop is what the end of a process looks like.
func (s *server) stop() {
	s.stopAccepting()
	for {
		select {
		case c := <-s.conns:
			c.Close()
		default:
			return
		}
	}
}

// stopAccepting leaves the connections open and takes no more.
func (s *server) stopAccepting() { s.listener.Close() }

// start runs a balancer that gives servers and clients two minutes for what they have seconds for otherwise, which a
// busy machine may need longer for.
func start(t *testing.T, o Options) *Balancer {
	t.Helper()
	return startAs(t, o, func(b *Balancer) { b.longer = patience })
}

// startUsual runs one with the usual times, for servers that say nothing: clients of the others try again
// (findsAtLast).
func startUsual(t *testing.T, o Options) *Balancer {
	t.Helper()
	return startAs(t, o, func(*Balancer) {})
}

// startStill is start for a balancer whose clock stands still: what has answered once goes on doing so, however busy
// the machine is.
func startStill(t *testing.T, o Options) *Balancer {
	t.Helper()
	return startAs(t, o, func(b *Balancer) {
		still := time.Now()
		b.longer, b.now = patience, func() time.Time { return still }
	})
}

func startAs(t *testing.T, o Options, change func(*Balancer)) *Balancer {
	t.Helper()
	o.Address = "127.0.0.1:0"
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ServerCAFile == "" {
		o.ServerCAFile = oursFile
	}
	if o.File == "" {
		o.File = filepath.Join(t.TempDir(), "servers.json")
	}
	b := testenv.Must(New(t.Context(), o))(t)
	change(b)
	testenv.Run(t, b.Run)
	return b
}

// client holds one connection through the balancer.
type client struct {
	*tls.Conn
	lines *bufio.Reader
}

func newClient(c net.Conn) *client {
	conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // who answers is what the tests are about
	return &client{conn, bufio.NewReader(conn)}
}

func connectTo(t *testing.T, b *Balancer) *client {
	t.Helper()
	c := testenv.Must(net.Dial("tcp", b.listener.Addr().String()))(t)
	t.Cleanup(func() { c.Close() })
	testenv.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return newClient(c)
}

func (c *client) ask() (string, error) {
	if _, err := io.WriteString(c, "hi\n"); err != nil {
		return "", err
	}
	return c.lines.ReadString('\n')
}

func wantAnswer(t *testing.T, b *Balancer, want string) *client {
	t.Helper()
	c := connectTo(t, b)
	if got, err := c.ask(); err != nil || got != want+" hi\n" {
		t.Errorf("%q, %v, want that of %s", got, err, want)
	}
	return c
}

// findsAtLast waits until a new connection is answered by the server that is wanted, and fails when another one
// answers: on a busy machine a server may take longer to show its certificate than it is given, and clients then try
// again.
func findsAtLast(t *testing.T, b *Balancer, want string) {
	t.Helper()
	testenv.Eventually(t, patience, "an answer of "+want, func() error {
		got, err := connectTo(t, b).ask()
		if err == nil && got != want+" hi\n" {
			t.Fatalf("%q, want that of %s", got, want)
		}
		return err
	})
}

// TestFormerServersAreKept: behind those that live, and not without end.
func TestFormerServersAreKept(t *testing.T) {
	b := start(t, Options{Server: "127.0.0.1:1"})
	for i := range 3 * most {
		testenv.NoError(t, b.Set([]string{fmt.Sprintf("127.0.0.1:%d", 100+i), "127.0.0.1:99"}))
	}
	got := b.Servers()
	if len(got) != most || got[1] != fmt.Sprintf("127.0.0.1:%d", 99+3*most) || !slices.Contains(got, "127.0.0.1:1") || !slices.Contains(got, "127.0.0.1:99") {
		t.Errorf("%v", got)
	}
}

// However many servers are named, the one in use and the one that the operator named are kept.
func TestLongListsKeepServerInUseAndNamedServer(t *testing.T) {
	one, two := newServer(t, "one", "127.0.0.1:0"), newServer(t, "two", "127.0.0.1:0")
	b := start(t, Options{Server: one.address})
	testenv.NoError(t, b.Set([]string{two.address}))
	one.stop()
	wantAnswer(t, b, "two")
	var invented []string
	for i := range 3 * most {
		invented = append(invented, fmt.Sprintf("192.0.2.%d:6443", i+1))
	}
	testenv.NoError(t, b.Set(invented))
	if known := b.Servers(); len(known) > most || known[0] != two.address || !slices.Contains(known, one.address) {
		t.Errorf("%d are known: %q", len(known), known)
	}
	wantAnswer(t, b, "two")
}

// TestConnectionsEndWithTheirServer: connections end with their server's, and the next ones go to another one and stay
// there.
func TestConnectionsEndWithTheirServer(t *testing.T) {
	one, _, b := twoServers(t)
	c := wantAnswer(t, b, "one")
	one.stop()
	testenv.Fails(t, testenv.Err(c.ask()), "a connection outlives its server")
	wantAnswer(t, b, "two")
	newServer(t, "one", one.address)
	wantAnswer(t, b, "two")
}

// TestUnresponsiveMachineLosesConnections: a server that accepts nothing any more and closes nothing loses its
// connections.
func TestUnresponsiveMachineLosesConnections(t *testing.T) {
	one, _, b := twoServers(t)
	idle := wantAnswer(t, b, "one")
	one.stopAccepting()
	if _, err := idle.lines.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want the connection's end", err)
	}
	wantAnswer(t, b, "two")
}

// TestConnectionWaitsForAServer: a connection that comes while no server can be used waits for one, and its client
// notices nothing. Before a server has ever been reached it is turned away.
func TestConnectionWaitsForAServer(t *testing.T) {
	one := newServer(t, "one", "127.0.0.1:0")
	b := start(t, Options{Server: one.address})
	one.stop()
	if got, err := connectTo(t, b).ask(); err == nil {
		t.Errorf("%q of no connection", got)
	}
	one = newServer(t, "one", one.address)
	wantAnswer(t, b, "one")
	one.stop()
	answer := make(chan error, 1)
	held := connectTo(t, b)
	go func() {
		_, err := held.ask()
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("the connection was not held: %v", err)
	case <-time.After(2 * holdPause): // what must not happen has no event to wait for
	}
	newServer(t, "one", one.address)
	testenv.Check(t, <-answer)
}

// TestStaleConnectionsCloseWhenMachineReturns: those from before a server's machine could not be reached are closed
// when it can be again, and the server stays the one in use.
func TestStaleConnectionsCloseWhenMachineReturns(t *testing.T) {
	_, _, b := twoServers(t)
	old := wantAnswer(t, b, "one")
	b.dropStale(b.Servers()[0], &probeState{})
	testenv.Check(t, testenv.Err(old.ask()), "there always was a way to its server")
	b.dropStale(b.Servers()[0], &probeState{cut: true})
	ended(t, old)
	wantAnswer(t, b, "one")
}

// TestDialFailureIsUnreachable: a machine whose kernel refuses, or accepts and whose server says nothing, is reached.
func TestDialFailureIsUnreachable(t *testing.T) {
	gone := newServer(t, "gone", "127.0.0.1:0")
	gone.stop()
	// As long as a busy machine needs to connect to itself; one that says nothing costs all of that.
	b := startAs(t, Options{Server: gone.address}, func(b *Balancer) { b.longer = 10 * time.Second })
	for what, address := range map[string]string{"it refuses": gone.address, "it says nothing": mute(t, "127.0.0.1:0")} {
		if err := b.prove(t.Context(), address); err == nil || unreachable(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	late, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if err := b.prove(late, mute(t, "127.0.0.1:0")); !unreachable(err) {
		t.Errorf("no server has answered within the time: %v", err)
	}
	testenv.True(t, unreachable(fmt.Errorf("a server: %w", error(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}))), "there is no route")
}

// TestServerListSurvivesRestart: a later start knows the servers, also when the one that was named is gone.
func TestServerListSurvivesRestart(t *testing.T) {
	gone, two := newServer(t, "gone", "127.0.0.1:0"), newServer(t, "two", "127.0.0.1:0")
	gone.stop()
	file := filepath.Join(t.TempDir(), "servers.json")
	first := start(t, Options{Server: gone.address, File: file})
	testenv.NoError(t, first.Set([]string{two.address}))
	b := start(t, Options{Server: gone.address, File: file})
	wantAnswer(t, b, "two")
	if got, want := b.Servers(), []string{two.address, gone.address}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// twoServers are known to a balancer that was given the first of them.
func twoServers(t *testing.T) (one, two *server, b *Balancer) {
	t.Helper()
	return twoServersOf(t, start)
}

// heardServers are two that the node's own connections to them have just heard, which a balancer whose clock stands
// still knows.
func heardServers(t *testing.T) (one, two *server, b *Balancer) {
	t.Helper()
	one, two, b = twoServersOf(t, startStill)
	b.Replied(one.address, true)
	b.Replied(two.address, true)
	return one, two, b
}

func twoServersOf(t *testing.T, start func(*testing.T, Options) *Balancer) (one, two *server, b *Balancer) {
	t.Helper()
	one, two = newServer(t, "one", "127.0.0.1:0"), newServer(t, "two", "127.0.0.1:0")
	b = start(t, Options{Server: one.address})
	testenv.NoError(t, b.Set([]string{one.address, two.address}))
	return one, two, b
}
