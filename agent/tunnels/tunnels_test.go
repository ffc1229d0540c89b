// SPDX-License-Identifier: Apache-2.0

package tunnels

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fakeServer takes nodes' connections with a certificate of that common name.
type fakeServer struct {
	address string

	mu       sync.Mutex
	sessions []*nodetunnel.Session
	taken    int
}

func newFakeServer(t *testing.T, ca *testca.Authority, name, protocol string) *fakeServer {
	t.Helper()
	files := testenv.Must(ca.Issue(name, "127.0.0.1"))(t)
	pair := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	l := testenv.Must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{protocol}, ClientAuth: tls.RequireAnyClientCert}))(t)
	f := &fakeServer{address: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		testenv.Accept(l, func(c net.Conn) {
			running.Go(func() {
				defer c.Close()
				if c.(*tls.Conn).HandshakeContext(t.Context()) != nil {
					return
				}
				s, err := nodetunnel.NewSession(c)
				if err != nil {
					return
				}
				f.mu.Lock()
				f.sessions, f.taken = append(f.sessions, s), f.taken+1
				f.mu.Unlock()
				_ = s.Wait()
				f.mu.Lock()
				f.sessions = slices.DeleteFunc(f.sessions, func(o *nodetunnel.Session) bool { return o == s })
				f.mu.Unlock()
			})
		})
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return f
}

// session is the one connection that there should be.
func (f *fakeServer) session() *nodetunnel.Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sessions) != 1 {
		return nil
	}
	return f.sessions[0]
}

func wait(t *testing.T, f *fakeServer) *nodetunnel.Session {
	t.Helper()
	testenv.Until(t, 2*time.Minute, "the node is connected", func() bool { return f.session() != nil })
	return f.session()
}

func TestTunnelFollowsServersAndCertificates(t *testing.T) {
	dir := t.TempDir()
	ca := testenv.Must(testca.New(dir))(t)
	node := testenv.Must(ca.Issue("system:node:n1"))(t)
	pair := filepath.Join(dir, "pair.pem")
	var both []byte
	for _, file := range []string{node.Cert, node.Key} {
		data := testenv.Must(os.ReadFile(file))(t)
		both = append(both, data...)
	}
	testenv.NoError(t, os.WriteFile(pair, both, 0o600))
	own := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer own.Close()
	go testenv.Accept(own, func(c net.Conn) {
		_, _ = io.WriteString(c, "kubelet")
		_ = c.Close()
	})

	first, second := newFakeServer(t, ca, protocol.ServerName, nodetunnel.Protocol), newFakeServer(t, ca, protocol.ServerName, nodetunnel.Protocol)
	other := testenv.Must(testca.New(t.TempDir()))(t)
	otherServers := []*fakeServer{
		newFakeServer(t, ca, "system:node:n2", nodetunnel.Protocol),       // another node
		newFakeServer(t, other, protocol.ServerName, nodetunnel.Protocol), // another cluster
		newFakeServer(t, ca, protocol.ServerName, "h2"),                   // a server that knows no such connections
	}
	var mu sync.Mutex
	servers := []string{first.address}
	for _, s := range otherServers {
		servers = append(servers, s.address)
	}
	storage := filepath.Join(dir, "storage")
	ended := make(chan string, 1)      // the first one counts
	readiness := make(chan string, 10) // more than there are
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Run(ctx, Options{
			Servers: func() []string {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(servers)
			},
			NodePair: pair, ServerCAFile: node.CA, NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
			PodCIDRs: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24")} },
			Volumes:  localvolume.New(localvolume.Options{Paths: []string{storage}, Own: storage}).Serve,
			Ended: func(server string) {
				select {
				case ended <- server:
				default:
				}
			},
			Readiness: func(server, reason string) { readiness <- server + " " + reason },
			Logger:    slog.New(slog.DiscardHandler),
		})
	}()
	defer func() {
		cancel()
		<-done
	}()

	s := wait(t, first)
	c := testenv.Must(s.Dial(t.Context(), netip.MustParseAddrPort(own.Addr().String())))(t)
	if got, _ := io.ReadAll(c); string(got) != "kubelet" {
		t.Errorf("%q", got)
	}
	_ = c.Close()
	testenv.ErrorIs(t, testenv.Err(s.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.2:10250"))), nodetunnel.ErrRefused, "an address that is not the node's")

	// A server asks for volumes inside the connection, and there is no other way to ask.
	c = testenv.Must(s.Dial(t.Context(), localvolume.Target))(t)
	testenv.Equal(t, testenv.Must(localvolume.Call(t.Context(), c, localvolume.Request{Op: localvolume.Space}))(t).Path, storage, "")
	beside := netip.AddrPortFrom(localvolume.Target.Addr(), localvolume.Target.Port()+1)
	testenv.ErrorIs(t, testenv.Err(s.Dial(t.Context(), beside)), nodetunnel.ErrRefused, "another port of that address")

	// What a server reports of its readiness counts until the connection ends.
	testenv.NoError(t, s.ReportReadiness(func() string { return nodetunnel.NoLeader }))
	for _, want := range []string{"", nodetunnel.NoLeader} {
		testenv.Equal(t, <-readiness, first.address+" "+want, "the readiness:")
	}

	// It comes back after a connection that has broken off, to servers that are new, and leaves those that are gone.
	_ = s.Close()
	if server := <-ended; server != first.address {
		t.Errorf("it hears that the connection to %s has ended", server)
	}
	testenv.Eventually(t, 2*time.Minute, "the node comes again", func() error {
		first.mu.Lock()
		defer first.mu.Unlock()
		if first.taken < 2 {
			return errors.New("it does not")
		}
		return nil
	})
	testenv.Equal(t, <-readiness, first.address+" ", "the readiness:")
	mu.Lock()
	servers = append(servers[1:], second.address)
	mu.Unlock()
	wait(t, second)
	testenv.Until(t, 2*time.Minute, "the node leaves a server that is none any more", func() bool { return first.session() == nil })
	for i, s := range otherServers {
		testenv.True(t, s.taken == 0, "the node showed itself to unidentified client %d", i)
	}
}

func TestOnlyNodesOwnAddressesAndPodsAreDialed(t *testing.T) {
	o := Options{NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")}}
	testenv.False(t, o.allowed(netip.MustParseAddrPort("10.42.1.5:80")), "a pod's address before the pods' network is known")
	o.PodCIDRs = func() []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("fd42:1::/64")}
	}
	for to, want := range map[string]bool{
		"10.0.0.7:10250": true, "10.42.1.5:80": true, "[fd42:1::5]:80": true,
		"10.0.0.8:10250": false, "127.0.0.1:10250": false, "[::1]:22": false, "10.42.2.5:80": false, "169.254.169.254:80": false,
	} {
		testenv.Equal(t, o.allowed(netip.MustParseAddrPort(to)), want, "%s:", to)
	}
}
