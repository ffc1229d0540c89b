// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// wayCluster is what several nodes on one segment are made from.
type wayCluster struct {
	backend  backend
	podCIDRs func(i int) []netip.Prefix
	underlay func(i int) []string // addresses with their networks
	mtu      int
}

func dualPods(i int) []netip.Prefix {
	return prefixes(fmt.Sprintf("10.42.%d.0/24", i), fmt.Sprintf("fd42:0:0:%d::/64", i))
}

func underlay4(i int) []string { return []string{fmt.Sprintf("192.0.2.%d/24", i)} }
func underlay6(i int) []string { return []string{fmt.Sprintf("2001:db8::%d/64", i)} }

func peerOf(i int, c wayCluster) Peer {
	p := Peer{Name: fmt.Sprint("n", i), PodCIDRs: c.podCIDRs(i)}
	for _, a := range c.underlay(i) {
		p.Underlay = append(p.Underlay, netip.MustParsePrefix(a).Addr())
	}
	p.Addresses = p.Underlay
	return p
}

// waysOf is the input of node i in a cluster of n nodes.
func waysOf(i, n int, c wayCluster) pathInput {
	in := pathInput{podCIDRs: c.podCIDRs(i), underlay: underlay{device: "eth0", mtu: c.mtu}}
	for _, a := range c.underlay(i) {
		in.underlay.addresses = append(in.underlay.addresses, netip.MustParsePrefix(a))
	}
	for j := 1; j <= n; j++ {
		if j != i {
			in.peers = append(in.peers, peerOf(j, c))
		}
	}
	in.sizes = sizesFor(c.mtu, in.overhead(c.backend), in.podCIDRs)
	return in
}

func render(objects []desiredObject, trouble []unreachablePeer) string {
	var out []string
	for _, w := range objects {
		out = append(out, w.String())
	}
	for _, t := range trouble {
		out = append(out, "! "+t.peer+": "+t.reason)
	}
	return strings.Join(out, "\n")
}

func TestDesiredWaysRouteSharedFamilies(t *testing.T) {
	mixed := func(i int) []string { // the first node has both families, the second IPv6 alone, the third IPv4 alone
		return map[int][]string{1: append(underlay4(1), underlay6(1)...), 2: underlay6(2), 3: underlay4(3)}[i]
	}
	only4 := func(i int) []netip.Prefix { return dualPods(i)[:1] }
	far := func(i int) []string { return []string{fmt.Sprintf("192.0.%d.1/24", i)} }
	for _, c := range []struct {
		name string
		c    wayCluster
		n    int
		want string
	}{
		{"vxlan, alone", wayCluster{vxlan{}, dualPods, underlay4, 1500}, 1, ""},
		{"vxlan, both families over IPv4", wayCluster{vxlan{}, dualPods, underlay4, 1500}, 2, `
link coracle-vxlan vxlan mtu 1450 up id 7233 dstport 8472 local 192.0.2.1 address ` + vtepMAC(dualPods(1)) + `
address 10.42.1.0 dev coracle-vxlan
sysctl net/ipv6/conf/coracle-vxlan/accept_ra 0
address fd42:0:0:1:: dev coracle-vxlan
fdb ` + vtepMAC(dualPods(2)) + ` dev coracle-vxlan dst 192.0.2.2
neighbour 10.42.2.0 dev coracle-vxlan lladdr ` + vtepMAC(dualPods(2)) + `
route 10.42.2.0/24 via 10.42.2.0 dev coracle-vxlan onlink src 10.42.1.1
neighbour fd42:0:0:2:: dev coracle-vxlan lladdr ` + vtepMAC(dualPods(2)) + `
route fd42:0:0:2::/64 via fd42:0:0:2:: dev coracle-vxlan onlink src fd42:0:0:1::1`},
		{"vxlan, an underlay on which IPv6 packets need two pieces", wayCluster{vxlan{}, dualPods, underlay4, 1280}, 2, `
link coracle-vxlan vxlan mtu 1280 up id 7233 dstport 8472 local 192.0.2.1 address ` + vtepMAC(dualPods(1)) + `
address 10.42.1.0 dev coracle-vxlan
sysctl net/ipv6/conf/coracle-vxlan/accept_ra 0
address fd42:0:0:1:: dev coracle-vxlan
fdb ` + vtepMAC(dualPods(2)) + ` dev coracle-vxlan dst 192.0.2.2
neighbour 10.42.2.0 dev coracle-vxlan lladdr ` + vtepMAC(dualPods(2)) + `
route 10.42.2.0/24 via 10.42.2.0 dev coracle-vxlan onlink mtu 1230 src 10.42.1.1
neighbour fd42:0:0:2:: dev coracle-vxlan lladdr ` + vtepMAC(dualPods(2)) + `
route fd42:0:0:2::/64 via fd42:0:0:2:: dev coracle-vxlan onlink src fd42:0:0:1::1`},
		{"vxlan, peers of different families", wayCluster{vxlan{}, only4, mixed, 1500}, 3, `
link coracle-vxlan vxlan mtu 1430 up id 7233 dstport 8472 local 192.0.2.1 address ` + vtepMAC(only4(1)) + `
address 10.42.1.0 dev coracle-vxlan
fdb ` + vtepMAC(only4(3)) + ` dev coracle-vxlan dst 192.0.2.3
neighbour 10.42.3.0 dev coracle-vxlan lladdr ` + vtepMAC(only4(3)) + `
route 10.42.3.0/24 via 10.42.3.0 dev coracle-vxlan onlink src 10.42.1.1
link coracle-vxlan6 vxlan mtu 1430 up id 7233 dstport 8472 local 2001:db8::1 address ` + vtepMAC(only4(1)) + `
address 10.42.1.0 dev coracle-vxlan6
fdb ` + vtepMAC(only4(2)) + ` dev coracle-vxlan6 dst 2001:db8::2
neighbour 10.42.2.0 dev coracle-vxlan6 lladdr ` + vtepMAC(only4(2)) + `
route 10.42.2.0/24 via 10.42.2.0 dev coracle-vxlan6 onlink src 10.42.1.1`},
		{"vxlan, an underlay that is too small for IPv6 in IPv6", wayCluster{vxlan{}, func(i int) []netip.Prefix { return dualPods(i)[1:] }, underlay6, 1280}, 2, `
link coracle-vxlan6 vxlan mtu 1280 up id 7233 dstport 8472 local 2001:db8::1 address ` + vtepMAC(dualPods(1)[1:]) + `
sysctl net/ipv6/conf/coracle-vxlan6/accept_ra 0
address fd42:0:0:1:: dev coracle-vxlan6
fdb ` + vtepMAC(dualPods(2)[1:]) + ` dev coracle-vxlan6 dst 2001:db8::2
neighbour fd42:0:0:2:: dev coracle-vxlan6 lladdr ` + vtepMAC(dualPods(2)[1:]) + `
route fd42:0:0:2::/64 via fd42:0:0:2:: dev coracle-vxlan6 onlink src fd42:0:0:1::1
! n2: IPv6 needs packets of 1280 bytes, and over IPv6 the tunnel has room for 1210 on eth0 with its MTU of 1280: larger ones get lost`},
		{"host-gw", wayCluster{hostGateway{}, dualPods, func(i int) []string { return append(underlay4(i), underlay6(i)...) }, 1500}, 2, `
route 10.42.2.0/24 via 192.0.2.2 dev eth0 src 10.42.1.1
route fd42:0:0:2::/64 via 2001:db8::2 dev eth0 src fd42:0:0:1::1`},
		{"host-gw, another family than the nodes have", wayCluster{hostGateway{}, dualPods, underlay4, 1500}, 2, `
route 10.42.2.0/24 via 192.0.2.2 dev eth0 src 10.42.1.1
! n2: it has no address of the family of its pods' network fd42:0:0:2::/64`},
		{"host-gw, a router in between", wayCluster{hostGateway{}, only4, far, 1500}, 2, `
! n2: its address 192.0.2.1 is in no network of eth0: host-gw is for nodes of one segment, vxlan for others`},
		{"host-gw, a VPN", wayCluster{hostGateway{}, only4, func(i int) []string { return []string{fmt.Sprintf("10.9.0.%d/24", i)} }, 1420}, 2, `
! n2: packets on eth0 do not say which node is the next one, as on a VPN's interface: host-gw is for nodes of one segment, vxlan for others`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := waysOf(1, c.n, c.c)
			in.underlay.barePackets = strings.HasSuffix(c.name, "a VPN")
			got := render(c.c.backend.desired(in))
			testenv.Equal(t, got, strings.TrimSpace(c.want), "")
		})
	}
}

func TestPeersWithForeignPodNetworksAreRefused(t *testing.T) {
	c := wayCluster{vxlan{}, dualPods, underlay4, 1500}
	own := dualPods(1)
	thief := peerOf(2, c)
	thief.Name, thief.PodCIDRs = "thief", prefixes("10.42.2.128/25", "fd42:0:0:9::/64")
	unknownPeer := peerOf(4, c)
	unknownPeer.PodCIDRs = prefixes("192.168.0.0/16")
	same := peerOf(5, c)
	same.PodCIDRs = own
	peers, trouble := acceptablePeers([]Peer{peerOf(2, c), thief, unknownPeer, same}, own, prefixes("10.42.0.0/16", "fd42::/48"))
	var got []string
	for _, p := range peers {
		got = append(got, fmt.Sprint(p.Name, p.PodCIDRs))
	}
	got = append(got, render(nil, trouble))
	want := `n2[10.42.2.0/24 fd42:0:0:2::/64]
thief[fd42:0:0:9::/64]
! thief: its pod network 10.42.2.128/25 is another node's, too
! n4: its pod network 192.168.0.0/16 is not in the cluster's [10.42.0.0/16 fd42::/48]
! n5: its pod network 10.42.1.0/24 is another node's, too
! n5: its pod network fd42:0:0:1::/64 is another node's, too`
	testenv.Equal(t, strings.Join(got, "\n"), want, "")
}

func TestMTULeavesRoomForTheOverhead(t *testing.T) {
	four, both := prefixes("10.42.1.0/24"), dualPods(1)
	for _, c := range []struct {
		underlay, overhead int
		pods               []netip.Prefix
		want               sizes
	}{
		{1500, vxlanOverhead4, both, sizes{mtu: 1450}},
		{1500, 0, both, sizes{mtu: 1500}},
		{1400, vxlanOverhead6, both, sizes{mtu: 1330}},
		{1280, vxlanOverhead4, four, sizes{mtu: 1230}},
		{1280, vxlanOverhead4, both, sizes{mtu: 1280, whole4: 1230}},
		{1280, vxlanOverhead6, both, sizes{mtu: 1280, whole4: 1210}},
		{1280, 0, both, sizes{mtu: 1280}},
		{9000, vxlanOverhead4, both, sizes{mtu: 8950}},
		{68, vxlanOverhead4, four, sizes{mtu: minMTU4}},
	} {
		testenv.Equal(t, sizesFor(c.underlay, c.overhead, c.pods), c.want, "underlay %d, overhead %d, %v:", c.underlay, c.overhead, c.pods)
	}
}
