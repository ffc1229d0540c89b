// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFailedBackendChangeCanBeReverted: where the cluster's back end cannot be made, the node says so, what heals does
// not bring back the one before, which would undo what was made, and a change back makes that one again. So does the
// end of what is in the way.
func TestFailedBackendChangeCanBeReverted(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	reported := ""
	n.o.Report = func(err error) { reported = fmt.Sprint(err) }
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(nodeAddr)}
	changes := 0
	n.o.Changed = func() { changes++ }
	s := testenv.Must(NewServer(n.o))(t)
	t.Cleanup(s.wg.close)
	st := networkState{PodCIDRs: prefixes("10.42.7.0/24"), Peers: []Peer{{
		Name: "b", PodCIDRs: prefixes("10.42.8.0/24"), WireGuardKey: testKey(2).PublicKey().String(), Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr)},
	}}}
	pass := func(backend string) error {
		t.Helper()
		st.Backend = backend
		err := s.configure(t.Context(), st)
		s.reportSetup(err)
		s.heal(t.Context(), true)
		return err
	}
	tunnels := func(want ...string) {
		t.Helper()
		links := testenv.Must(netlink.LinkList())(t)
		var got []string
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, tunnelPrefix) {
				got = append(got, l.Attrs().Name)
			}
		}
		testenv.True(t, fmt.Sprint(got) == fmt.Sprint(want), "there are %v, want %v", got, want)
	}
	if err := pass(clusterconfig.NetworkVXLAN); err != nil || s.Backend() != clusterconfig.NetworkVXLAN || changes != 1 {
		t.Fatalf("%v, %q, %d changes", err, s.Backend(), changes)
	}
	tunnels(deviceVXLAN4)

	inTheWay := testenv.Must(net.ListenUDP("udp", &net.UDPAddr{Port: clusterconfig.WireGuardPort}))(t)
	defer inTheWay.Close()
	for range 2 {
		if err := pass(clusterconfig.NetworkWireGuard); err == nil || !strings.Contains(reported, "the pod network could not be set up") {
			t.Fatalf("%v; it says %s", err, reported)
		}
		if l, err := netlink.LinkByName(deviceVXLAN4); err == nil {
			t.Errorf("%s is there again", l.Attrs().Name)
		}
		if s.Backend() != clusterconfig.NetworkVXLAN || changes != 1 {
			t.Errorf("it says that it goes by %q, after %d changes", s.Backend(), changes)
		}
	}
	if err := pass(clusterconfig.NetworkVXLAN); err != nil || reported != "<nil>" {
		t.Errorf("%v; it says %s", err, reported)
	}
	tunnels(deviceVXLAN4)
	testenv.Fails(t, pass(clusterconfig.NetworkWireGuard), "it works without its port")
	inTheWay.Close()
	if err := pass(clusterconfig.NetworkWireGuard); err != nil || reported != "<nil>" || s.Backend() != clusterconfig.NetworkWireGuard || changes != 2 {
		t.Errorf("%v; it says %s, and that it goes by %q, after %d changes", err, reported, s.Backend(), changes)
	}
	tunnels(wireGuardDevice)
}
