// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMemberFindsMovedServers: this machine and the servers have other addresses, and another machine has the servers'
// old one. A machine that has joined before looks for the servers, by the keys that it kept, until it has found one;
// its certificates may have run out.
func TestMemberFindsMovedServers(t *testing.T) {
	for name, joined := range map[string]time.Time{"a day ago": time.Now().AddDate(0, 0, -1), "400 days ago": time.Now().AddDate(0, 0, -400)} {
		t.Run(name, func(t *testing.T) {
			s, dir := newServers(t), t.TempDir()
			keys := clusterconfig.NewGossipKeys()
			s.gossip = &keys
			now := s.pki
			s.pki = s.at(t, joined)
			old := s.options(dir)
			testenv.Must(node.Join(t.Context(), old))(t)
			s.pki = now
			s.stop()
			otherCluster(t, s.address)
			s.start("127.0.0.1:0")
			o := old // it names the old address
			o.Addresses = []netip.Addr{netip.MustParseAddr("10.9.0.7")}
			var found []string
			searches := 0
			o.Others = func() []string { return found }
			o.Search = func(_ context.Context, with clusterconfig.GossipKeys) {
				if searches++; !bytes.Equal(with.Keys[0], keys.Keys[0]) {
					t.Errorf("it looks with other keys than those of the cluster: %v", with.Generation)
				}
				if searches == 2 { // no server answers at first
					found = []string{s.address}
				}
			}
			testenv.Must(node.Join(t.Context(), o))(t)
			if last := s.joins[len(s.joins)-1]; searches != 2 || last.Node.Addresses[0] != o.Addresses[0] || last.Joined != (name == "a day ago") {
				t.Errorf("%d searches; joined as %+v with the certificate: %t", searches, last.Node.Addresses, last.Joined)
			}
		})
	}
}

// TestForeignServerIsRefusedAtFirst: a machine that has never joined reports what answers at the address that it was
// given.
func TestForeignServerIsRefusedAtFirst(t *testing.T) {
	s := newServers(t)
	o := s.options(t.TempDir())
	o.Server = &url.URL{Scheme: "https", Host: otherCluster(t, "127.0.0.1:0")}
	o.Search = func(context.Context, clusterconfig.GossipKeys) {
		t.Error("it looks for the servers of a cluster that it does not know")
	}
	testenv.Fails(t, testenv.Err(node.Join(t.Context(), o)), "it joined a stranger")
}

// otherCluster is a program that is none of the cluster's, at an address, until the test ends.
func otherCluster(t *testing.T, address string) string {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", address))(t)
	t.Cleanup(func() { _ = l.Close() })
	go testenv.Accept(l, func(c net.Conn) {
		_, _ = c.Write([]byte("220 a mail server\r\n"))
		_ = c.Close()
	})
	return l.Addr().String()
}
