// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

// Routers returns the gateways of this machine's routes: another machine has each of them, whether it responds now or
// not.
func Routers() ([]netip.Addr, error) {
	routes, err := netlinkutil.Routes(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	var out []netip.Addr
	add := func(ip []byte) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	for i := range routes {
		add(routes[i].Gw)
		if via, ok := routes[i].Via.(*netlink.Via); ok {
			add(via.Addr)
		}
		for _, hop := range routes[i].MultiPath {
			add(hop.Gw)
		}
	}
	return out, nil
}
