// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestBackendChangeLeavesNothingBehind: a node goes by the back end that the cluster says, from one moment to the next
// and over restarts, and nothing is left of the one before.
func TestBackendChangeLeavesNothingBehind(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	n.stop()
	var mu sync.Mutex
	reported := ""
	n.o.Report = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		reported = fmt.Sprint(err)
	}
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr(nodeAddr6)}
	peer := Peer{Name: "b", PodCIDRs: prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), WireGuardKey: testKey(2).PublicKey().String(), Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr), netip.MustParseAddr(outAddr6)}}
	var backends chan string
	start := func() {
		peers := make(chan []Peer, 1)
		peers <- []Peer{peer}
		backends = make(chan string)
		n.o.Peers, n.o.Backends = peers, backends
		n.start()
	}
	start()
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	pod := n.pod("aaa")

	is := func(want string, mtu int) {
		t.Helper()
		eventually(t, func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			var tunnels []string
			for _, l := range links {
				if strings.HasPrefix(l.Attrs().Name, tunnelPrefix) {
					tunnels = append(tunnels, l.Attrs().Name)
				}
			}
			routes, err := netlink.RouteGet(netip.MustParseAddr("10.42.8.5").AsSlice())
			if err != nil || len(routes) == 0 {
				return fmt.Errorf("no way to the peer: %w", err)
			}
			by, err := netlink.LinkByIndex(routes[0].LinkIndex)
			if err != nil {
				return err
			}
			routes6, err := netlink.RouteGet(netip.MustParseAddr("fd42:0:0:8::5").AsSlice())
			if err != nil || len(routes6) == 0 || routes6[0].LinkIndex != routes[0].LinkIndex {
				return fmt.Errorf("by IPv6 the way to the peer is %v: %w", routes6, err)
			}
			size := 0
			if err := pod.Do(func() error {
				l, err := netlink.LinkByName("eth0")
				if err == nil {
					size = l.Attrs().MTU
				}
				return err
			}); err != nil {
				return err
			}
			if got := fmt.Sprintf("%v, by %s", tunnels, by.Attrs().Name); got != want || size != mtu {
				return fmt.Errorf("%s, pods have %d, want %s and %d", got, size, want, mtu)
			}
			return nil
		})
	}
	const tunnel, plain, sealed = "[coracle-vxlan], by coracle-vxlan", "[], by uplink", "[coracle-wg], by coracle-wg"
	is(tunnel, 1450)
	backends <- clusterconfig.NetworkHostGateway
	is(plain, 1500)
	testenv.Fails(t, testenv.Err(netlink.LinkByName(wireGuardDevice)), "there is a WireGuard device without WireGuard")
	backends <- clusterconfig.NetworkWireGuard
	is(sealed, 1440)
	n.stop()
	testenv.Equal(t, KnownBackend(n.o.StateDir), clusterconfig.NetworkWireGuard, "the node remembers")
	start() // the API has said nothing yet
	is(sealed, 1440)
	backends <- clusterconfig.NetworkHostGateway
	is(plain, 1500)
	for _, next := range []string{clusterconfig.NetworkWireGuard, clusterconfig.NetworkVXLAN, clusterconfig.NetworkWireGuard, clusterconfig.NetworkHostGateway} {
		backends <- next
		switch next {
		case clusterconfig.NetworkWireGuard:
			is(sealed, 1440)
		case clusterconfig.NetworkVXLAN:
			is(tunnel, 1450)
		default:
			is(plain, 1500)
		}
	}

	// What no node can change to is said, and changes nothing.
	for next, message := range map[string]string{
		clusterconfig.NetworkNone: "leaves the pod network to another plugin now (none); this node does so when coracle is restarted on it. If that was written by hand, restart coracle on a server", "carrier-pigeons": `says that the network back end is "carrier-pigeons", to which no running node changes; this one stays with "host-gw"`,
	} {
		backends <- next
		backends <- next // is taken when all was done for the first
		eventually(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(reported, message) {
				return fmt.Errorf("it says %s", reported)
			}
			return nil
		})
		is(plain, 1500)
	}
	for range 2 { // the ConfigMap was deleted: the node was started with vxlan, and others may have been with what there is now. The second is taken after all was done for the first
		backends <- ""
	}
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		if reported != "<nil>" {
			return fmt.Errorf("it says %s", reported)
		}
		return nil
	})
	is(plain, 1500)
}
