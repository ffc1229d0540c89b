// SPDX-License-Identifier: Apache-2.0

package tunnels

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

type fixture struct {
	t     *testing.T
	pki   *pki.PKI
	table *Table
	guard nodecreds.Guard
	at    string
	// readiness, when set, is called with what a node receives of the server's readiness.
	readiness func(node, reason string)
	// silent has nodes keep their streams open, without a word.
	silent bool
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	p := testenv.Must(pki.Open(pki.Options{Dir: filepath.Join(dir, "tls"), Logger: slog.New(slog.DiscardHandler)}))(t)
	f := &fixture{t: t, pki: p}
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	f.at = l.Addr().String()
	serving := f.pair(p.APIServer(pki.APIServerNames{NodeName: "s1", Domain: "cluster.local"}))
	f.table = testenv.Must(New(Options{
		Listener: l, Certificate: func() (*tls.Certificate, error) { return serving, nil }, ClientCA: p.CAPEM(pki.ClientCA),
		Guard: &f.guard, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	}))(t)
	testenv.Run(t, f.table.Run)
	return f
}

// pair makes a certificate.
func (f *fixture) pair(l pki.Leaf) *tls.Certificate {
	f.t.Helper()
	if l.Path == "" || !filepath.IsAbs(l.Path) {
		l.Path = filepath.Join(f.t.TempDir(), "pair.pem")
	}
	testenv.NoError(f.t, f.pki.Ensure(l))
	pair := testenv.Must(tls.LoadX509KeyPair(l.Path, l.Path))(f.t)
	return &pair
}

// connect connects with a certificate, or none.
func (f *fixture) connect(pair *tls.Certificate) *tls.Conn {
	f.t.Helper()
	c := &tls.Config{NextProtos: []string{nodetunnel.Protocol}, InsecureSkipVerify: true} // the client's checks are its own package's
	if pair != nil {
		c.Certificates = []tls.Certificate{*pair}
	}
	conn := testenv.Must(tls.Dial("tcp", f.at, c))(f.t)
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// node connects a node that has an echo at each of its addresses and says which one was asked for.
func (f *fixture) node(name string, own ...string) (stop func()) {
	f.t.Helper()
	conn := f.connect(f.pair(f.pki.Node(f.t.TempDir(), name)))
	ctx, cancel := context.WithCancel(f.t.Context())
	var running sync.WaitGroup
	n := nodetunnel.Node{
		Allowed: func(to netip.AddrPort) bool {
			return slices.ContainsFunc(own, func(a string) bool { return netip.MustParseAddr(a) == to.Addr() })
		},
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			a, b := net.Pipe()
			go func() {
				if f.silent {
					_, _ = io.Copy(io.Discard, b)
				} else {
					_, _ = io.WriteString(b, name+" "+address)
				}
				_ = b.Close()
			}()
			return a, nil
		},
	}
	if f.readiness != nil {
		n.Readiness = func(reason string) { f.readiness(name, reason) }
	}
	running.Go(func() { _ = n.Serve(ctx, conn) })
	stop = func() {
		cancel()
		running.Wait()
	}
	f.t.Cleanup(stop)
	testenv.Until(f.t, 2*time.Minute, "the node is connected", func() bool {
		c, ok := f.table.Contact(name)
		return !(!ok || !c.Open)
	})
	return stop
}

// Only a node speaks for a node.
func TestOnlyNodesMayConnectTheirTunnel(t *testing.T) {
	f := newFixture(t)
	for name, leaf := range map[string]pki.Leaf{
		"the kubelet's port":               f.pki.NodeServing(t.TempDir(), "n1", nil),
		"a node's network parts":           f.pki.Network(t.TempDir()),
		"the administrator":                f.pki.Admin(),
		"another server":                   f.pki.Peer("s2"),
		"the API server, towards kubelets": f.pki.KubeletClient(),
		"the API server":                   f.pki.APIServer(pki.APIServerNames{NodeName: "s1", Domain: "cluster.local"}),
		"a user in the group of nodes":     {Name: "user", Signer: pki.ClientCA, CommonName: "n1", Organizations: []string{nodeGroup}},
		"a node's name in another group":   {Name: "group", Signer: pki.ClientCA, CommonName: nodeUser + "n1", Organizations: []string{"users"}},
		"a node without a name":            {Name: "nameless", Signer: pki.ClientCA, CommonName: nodeUser, Organizations: []string{nodeGroup}},
		"nobody":                           {},
	} {
		var pair *tls.Certificate
		if leaf.Name != "" {
			leaf.Path, leaf.Use = "", nil
			pair = f.pair(leaf)
		}
		conn := f.connect(pair)
		_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
		_, err := conn.Read(make([]byte, 1))
		if timeout, ok := err.(net.Error); err == nil || ok && timeout.Timeout() {
			t.Errorf("%s is not closed: %v", name, err)
		}
	}
	testenv.False(t, len(f.table.nodes) > 0, "connections were taken: %v", f.table.nodes)
}

// TestRevokedNodesTunnelEnds: a node that is revoked loses its connection and gets no other one. Other nodes keep
// theirs, and a later machine of that name connects.
func TestRevokedNodesTunnelEnds(t *testing.T) {
	f := newFixture(t)
	open := func(l pki.Leaf) func() bool { // until the server closes it
		conn := f.connect(f.pair(l))
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_, _ = io.Copy(io.Discard, conn)
		}()
		return func() bool {
			select {
			case <-closed:
				return true
			default:
				return false
			}
		}
	}
	leaf := func(name string, generation uint64) pki.Leaf {
		return f.pki.Node(t.TempDir(), name).For(name, generation)
	}
	connected := func(name string, n int) {
		t.Helper()
		testenv.Until(t, 2*time.Minute, fmt.Sprintf("%s has %d connections", name, n), func() bool {
			f.table.mu.Lock()
			defer f.table.mu.Unlock()
			return f.table.nodes[name] != nil && len(f.table.nodes[name].sessions) == n
		})
	}
	first, second, other := open(leaf("n1", 0)), open(leaf("n1", 0)), open(leaf("n2", 0))
	connected("n1", 2)
	connected("n2", 1)
	f.guard.Set(nodecreds.Revoked{"n1": 1})
	testenv.Until(t, 2*time.Minute, "its connections are closed", func() bool { return first() && second() })
	connected("n1", 0)
	testenv.Until(t, 2*time.Minute, "a new one is closed", open(leaf("n1", 0)))
	next := open(leaf("n1", 1))
	connected("n1", 1)
	testenv.False(t, other() || next(), "closed are another node's connection: %t, the next machine's: %t", other(), next())
	connected("n2", 1)
}

// What is a node's is reached through its connection, and through no other node's.
func TestDialUsesNodesOwnTunnel(t *testing.T) {
	f := newFixture(t)
	f.node("n1", "10.0.0.1", "10.42.1.5")
	stop := f.node("n2", "10.0.0.2")
	f.table.Follow(OwnerByNodes(nodes(
		described("n1", []string{"10.0.0.1"}, "10.42.1.0/24"), described("n2", []string{"10.0.0.2", "127.0.0.1"}, "10.42.2.0/24"),
	)))
	for address, want := range map[string]string{
		"10.0.0.1:10250":          "n1 10.0.0.1:10250",
		"[::ffff:10.0.0.1]:10250": "n1 10.0.0.1:10250",
		"10.42.1.5:443":           "n1 10.42.1.5:443",
		"10.0.0.2:10250":          "n2 10.0.0.2:10250",
	} {
		c, err := f.table.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		got, _ := io.ReadAll(c)
		testenv.True(t, string(got) == want, "%s: %q, want %q", address, got, want)
		_ = c.Close()
	}
	testenv.ErrorIs(t, testenv.Err(f.table.DialContext(t.Context(), "tcp", "10.42.2.9:443")), nodetunnel.ErrRefused, "what the node refuses")
	// What nodes serve inside the connection alone is reached by the node's name, and by no client that dials its
	// address.
	volumes := netip.MustParseAddrPort("[100::1]:1")
	f.node("n3", "100::1")
	c := testenv.Must(f.table.Open(t.Context(), "n3", volumes))(t)
	if got, _ := io.ReadAll(c); string(got) != "n3 "+volumes.String() {
		t.Errorf("%q", got)
	}
	_ = c.Close()
	testenv.ErrorIs(t, testenv.Err(f.table.Open(t.Context(), "n2", volumes)), nodetunnel.ErrRefused, "a node that has no volumes")
	testenv.ErrorIs(t, testenv.Err(f.table.Open(t.Context(), "n9", volumes)), ErrNotConnected, "a node that is away")
	testenv.True(t, f.table.sessionOf(volumes.Addr()) == nil, "it is reached by its address")
	// A node's connection that has ended leaves the direct way.
	stop()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	testenv.Until(t, 2*time.Minute, "the connection has ended", func() bool {
		c, _ := f.table.Contact("n2")
		return !c.Open
	})
	c = testenv.Must(f.table.DialContext(t.Context(), "tcp", l.Addr().String()))(t)
	_ = c.Close()
	if c, ok := f.table.Contact("n2"); !ok || time.Since(c.Last) > time.Minute || c.Direct {
		t.Errorf("of a node whose connection has ended is left %+v, %v", c, ok)
	}
}

func TestConnectionsOfOneNode(t *testing.T) {
	f := newFixture(t)
	for range maxPerNode + 3 {
		f.node("n1", "10.0.0.1")
	}
	testenv.Eventually(t, 2*time.Minute, "the oldest are gone", func() error {
		f.table.mu.Lock()
		defer f.table.mu.Unlock()
		if n := len(f.table.nodes["n1"].sessions); n != maxPerNode {
			return errors.New("not yet")
		}
		return nil
	})
	testenv.Equal(t, len(f.table.Indirect()), 1, "never reached directly:")
	f.table.Reached("n1")
	testenv.Equal(t, len(f.table.Indirect()), 0, "never reached directly:")
}

// TestReconnectingNodeLeavesNothingBehind: a node that connects again and again leaves nothing behind, whichever of its
// connections ends first.
func TestReconnectingNodeLeavesNothingBehind(t *testing.T) {
	f := newFixture(t)
	f.node("n1", "10.0.0.1")()
	before := runtime.NumGoroutine()
	var last func()
	for i := range 100 {
		stop := f.node("n1", "10.0.0.1")
		switch {
		case i%3 == 0:
			stop()
		case last != nil:
			last()
			last = stop
		default:
			last = stop
		}
	}
	testenv.Eventually(t, 2*time.Minute, "the node is connected", func() error { // the server may take in the last one later than the end of the one before
		if c, _ := f.table.Contact("n1"); !c.Open {
			return errors.New("it is not")
		}
		return nil
	})
	last()
	testenv.Eventually(t, 2*time.Minute, "nothing is left", func() error {
		f.table.mu.Lock()
		defer f.table.mu.Unlock()
		if n := len(f.table.nodes["n1"].sessions); n > 0 {
			return fmt.Errorf("%d connections", n)
		}
		if n := runtime.NumGoroutine(); n > before+5 { // the runtime has some of its own now and then
			return fmt.Errorf("%d goroutines, %d before", n, before)
		}
		return nil
	})
}

// TestManyConnectionsAtOnce: connections of a node that come before the end of the oldest has been noticed do not make
// it more than there may be.
func TestManyConnectionsAtOnce(t *testing.T) {
	table := &Table{nodes: map[string]*entry{}, arrived: make(chan struct{}, 1)}
	const tooMany = 3
	ended := make(chan int, maxPerNode+tooMany)
	for i := range maxPerNode + tooMany {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		s := testenv.Must(nodetunnel.NewSession(a))(t)
		go func() { _ = s.Wait(); ended <- i }()
		table.add("n1", s, "10.0.0.1")
	}
	var got []int
	for range tooMany {
		select {
		case i := <-ended:
			got = append(got, i)
		case <-time.After(2 * time.Minute):
			t.Fatalf("only %v were closed, want the %d oldest", got, tooMany)
		}
	}
	if slices.Sort(got); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("%v were closed, want the %d oldest", got, tooMany)
	}
}

// TestDrainClosesSessions: nodes' connections are closed, those that come later too, until they are welcome again.
func TestDrainClosesSessions(t *testing.T) {
	f := newFixture(t)
	f.node("n1", "10.0.0.1")
	f.table.Drain(true)
	closed := func(name string) {
		testenv.Until(t, 2*time.Minute, name+" is closed", func() bool {
			c, ok := f.table.Contact(name)
			return !(!ok || c.Open)
		})
	}
	closed("n1")
	conn := f.connect(f.pair(f.pki.Node(t.TempDir(), "n2")))
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Log(err) // however the connection ends
	}
	closed("n2")
	f.table.Drain(false)
	f.node("n2", "10.0.0.2")
}

// TestNodesReceiveReadiness: nodes that are connected, and those that connect later, have the server's latest
// readiness, however quickly it changes. One of an older version stays connected.
func TestNodesReceiveReadiness(t *testing.T) {
	f := newFixture(t)
	f.node("old", "10.0.0.9")
	var mu sync.Mutex
	has := map[string]string{}
	f.readiness = func(node, reason string) {
		mu.Lock()
		defer mu.Unlock()
		has[node] = reason
	}
	wants := func(reason string, nodes ...string) {
		t.Helper()
		for _, n := range nodes {
			testenv.Until(t, 2*time.Minute, n+" has "+reason, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return has[n] == reason
			})
		}
	}
	f.node("n1", "10.0.0.1")
	f.table.SetReadiness(nodetunnel.NoLeader)
	wants(nodetunnel.NoLeader, "n1")
	f.node("n2", "10.0.0.2")
	wants(nodetunnel.NoLeader, "n2")
	for range 50 {
		f.table.SetReadiness("")
		f.table.SetReadiness(nodetunnel.NoLeader)
	}
	f.table.SetReadiness(nodetunnel.ClockOff)
	wants(nodetunnel.ClockOff, "n1", "n2")
	f.table.SetReadiness("")
	wants("", "n1", "n2")
	c, _ := f.table.Contact("old")
	testenv.True(t, c.Open, "a node of an older version has lost its connection")
}

// TestRemovedNodeIsForgotten: of a node that is gone nothing is left, and one that has moved counts as never reached.
func TestRemovedNodeIsForgotten(t *testing.T) {
	table := &Table{nodes: map[string]*entry{}, arrived: make(chan struct{}, 1)}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	session := func() *nodetunnel.Session {
		return testenv.Must(nodetunnel.NewSession(a))(t)
	}
	s := session()
	remove := table.add("n1", s, "10.0.0.1")
	table.Reached("n1")
	table.RemoveDeleted(func(string) bool { return true })
	if c, ok := table.Contact("n1"); !ok || !c.Direct {
		t.Errorf("a node that is connected: %+v, %v", c, ok)
	}
	remove()
	remove = table.add("n1", s, "10.0.0.1")
	if c, _ := table.Contact("n1"); !c.Direct {
		t.Error("a node that is back where it was counts as never reached")
	}
	remove()
	remove = table.add("n1", s, "10.0.0.2")
	if c, _ := table.Contact("n1"); c.Direct {
		t.Error("a node that has moved counts as reached")
	}
	table.Reached("n1")
	from3 := table.add("n1", s, "10.0.0.3") // the kernel has not noticed yet that no process is at the other end of the first one
	if c, _ := table.Contact("n1"); c.Direct {
		t.Error("a node that has moved, and whose connection of before looks open, counts as reached")
	}
	from3()
	remove()
	table.RemoveDeleted(func(name string) bool { return name != "n1" })
	if _, ok := table.Contact("n1"); !ok {
		t.Error("a node that there is was forgotten")
	}
	table.RemoveDeleted(func(string) bool { return true })
	if _, ok := table.Contact("n1"); ok {
		t.Error("a node that is gone is known")
	}
	_ = s.Close()
}

func nodes(all ...*corev1.Node) corelisters.NodeLister {
	i := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for _, n := range all {
		_ = i.Add(n) // it has a name
	}
	return corelisters.NewNodeLister(i)
}

func described(name string, addresses []string, pods ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: pods}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func TestOwnerOfAnAddress(t *testing.T) {
	owner := OwnerByNodes(nodes(
		described("n1", []string{"10.0.0.1", "fd00::1"}, "10.42.1.0/24", "fd42:1::/64"),
		described("n2", []string{"10.0.0.2"}, "10.42.2.0/24"),
		described("n3", []string{"10.0.0.3", "10.0.0.2"}, "10.42.3.0/24"), // claims another one's address
		described("n4", []string{"10.0.0.4"}, "10.42.0.0/16"),             // claims everybody's pods
		described("n5", []string{"10.0.0.5", "not one"}, "10.42.3.0/24", "nor this"),
	))
	for a, want := range map[string]string{
		"10.0.0.1": "n1", "fd00::1": "n1", "10.42.1.7": "n1", "fd42:1::7": "n1",
		"10.0.0.2": "", "10.0.0.3": "n3", "10.42.2.7": "n2", "10.42.3.7": "", "10.42.9.7": "n4", "10.0.0.9": "",
	} {
		if got := owner(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is %q's, want %q's", a, got, want)
		}
	}
}
