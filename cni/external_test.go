// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/coracle-k8s/coracle/test/netns"
)

// TestWaysByExternalAddresses: nodes in networks of their own reach one another's pods at addresses that a router
// between them translates, both ways.
func TestWaysByExternalAddresses(t *testing.T) {
	external := func(i int) []string { return []string{fmt.Sprintf("203.0.113.%d/32", i)} }
	netns.RequireNFT(t)
	s := &segment{T: t, c: wayCluster{vxlan{}, dualPods, external, 1500}, device: "eth0"}
	netns.Sysctl(t, "ipv4/ip_forward=1")
	rules := `add table ip translator
add chain ip translator pre { type nat hook prerouting priority -100; }
add chain ip translator post { type nat hook postrouting priority 100; }
add chain ip translator through { type filter hook forward priority 0; }
add rule ip translator through ct status dnat accept
add rule ip translator through drop
`
	for i := 1; i <= 2; i++ {
		ns, outer := netns.New(t), netip.MustParsePrefix(external(i)[0]).Addr()
		inner, router := fmt.Sprintf("192.168.%d.2", i), fmt.Sprintf("192.168.%d.1", i)
		ns.Link(t, fmt.Sprintf("port%d", i), "eth0", []string{router + "/24"}, []string{inner + "/24"})
		netns.Route(t, ns, router, "0.0.0.0/0")
		rules += fmt.Sprintf("add rule ip translator pre ip daddr %s dnat to %s\nadd rule ip translator post ip saddr %s snat to %s\n", outer, inner, inner, outer)
		s.nodes = append(s.nodes, ns)
	}
	netns.NFT(t, rules)
	t.Cleanup(func() { netns.NFT(t, "delete table ip translator") })
	s.passAll()
	s.meets()
	serve(t, s.nodes[1], "node", "tcp", "192.168.2.2:80")
	refuse(t, s.nodes[0], "a node by its own address, so that only external ones can have led there", "192.168.2.2:80")
}
