// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// TestOtherBackendAfterRestart: a node that starts with another back end reaches its peers by it, of both families. An
// IPv6 route by the former one stands in the way of the new one, whose gateway it leads to.
func TestOtherBackendAfterRestart(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr(nodeAddr6)}
	peer := Peer{Name: "b", PodCIDRs: prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr), netip.MustParseAddr(outAddr6)}}
	for _, c := range []struct{ backend, device string }{
		{clusterconfig.NetworkVXLAN, deviceVXLAN4}, {clusterconfig.NetworkHostGateway, "uplink"}, {clusterconfig.NetworkVXLAN, deviceVXLAN4},
	} {
		n.stop()
		peers := make(chan []Peer, 1)
		peers <- []Peer{peer}
		n.o.Backend, n.o.Peers = c.backend, peers
		n.start()
		n.cidrs <- prefixes("10.42.7.0/24", "fd42:0:0:7::/64")
		for _, to := range []string{"10.42.8.5", "fd42:0:0:8::5"} {
			eventually(t, func() error {
				routes, err := netlink.RouteGet(netip.MustParseAddr(to).AsSlice())
				if err != nil || len(routes) == 0 {
					return fmt.Errorf("no way to %s: %w", to, err)
				}
				by, err := netlink.LinkByIndex(routes[0].LinkIndex)
				if err == nil && by.Attrs().Name != c.device {
					err = fmt.Errorf("with %s the way to %s is by %s, want %s", c.backend, to, by.Attrs().Name, c.device)
				}
				return err
			})
		}
	}
}
