// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// vxlan encapsulates packets between nodes in UDP datagrams (RFC 7348). It learns nothing and resolves nothing: a
// peer's entries follow from its Node, so they exist before the peer has sent a packet.
//
// A node has one device for each family of the underlay that leads to a peer, usually IPv4's alone. Packets of both
// families go through either.
type vxlan struct{}

const (
	// tunnelPrefix starts the name of every device that leads to other nodes.
	tunnelPrefix = "coracle-"
	deviceVXLAN4 = tunnelPrefix + "vxlan"
	deviceVXLAN6 = tunnelPrefix + "vxlan6"

	// vxlanVNI is not flannel's 1, so that a device that flannel has left does not conflict with ours.
	vxlanVNI = 7233

	// The bytes that VXLAN adds: the outer IP header, UDP, VXLAN and the inner Ethernet header.
	vxlanOverhead4 = 20 + 8 + 8 + 14
	vxlanOverhead6 = 40 + 8 + 8 + 14
)

func (vxlan) overhead(v4 bool) int {
	if v4 {
		return vxlanOverhead4
	}
	return vxlanOverhead6
}

func (vxlan) port() int { return clusterconfig.VXLANPort }

func vxlanDevice(v4 bool) string {
	if v4 {
		return deviceVXLAN4
	}
	return deviceVXLAN6
}

// vtepMAC returns the link address of a node's end of the tunnel. It derives it from the node's first pod network,
// which no two nodes share.
func vtepMAC(podCIDRs []netip.Prefix) string {
	sum := sha256.Sum256([]byte("coracle vxlan " + podCIDRs[0].Masked().String()))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, administered locally
	return mac.String()
}

// vtepIP returns the address of a node's end of the tunnel: the first address of the node's pod network, which no pod
// has.
func vtepIP(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr() }

func (vxlan) desired(in pathInput) (out []desiredObject, unreachable []unreachablePeer) {
	add := func(o object) { out = append(out, desiredObject{object: o}) }
	byFamily := map[bool][]Peer{}
	for _, p := range in.peers {
		v4, ok := in.family(p)
		if !ok {
			unreachable = append(unreachable, unreachablePeer{p.Name, "it and this node have no addresses of one family"})
			continue
		}
		byFamily[v4] = append(byFamily[v4], p)
	}
	for _, v4 := range []bool{true, false} {
		local, ok := in.underlay.address(v4)
		if !ok || len(byFamily[v4]) == 0 {
			continue
		}
		if largest := in.underlay.mtu - vxlanOverhead6; !v4 && largest < in.mtu {
			// The kernel fragments datagrams of a tunnel over IPv4 where it has to. Over IPv6 it does not.
			for _, p := range byFamily[v4] {
				unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("IPv6 needs packets of %d bytes, and over IPv6 the tunnel has "+
					"room for %d on %s with its MTU of %d: larger ones get lost",
					in.mtu, largest, in.underlay.device, in.underlay.mtu)})
			}
		}
		device := vxlanDevice(v4)
		add(link{name: device, kind: kindVXLAN, mtu: in.mtu, up: true, vxlan: vxlanLink{vxlanVNI, clusterconfig.VXLANPort, local,
			vtepMAC(in.podCIDRs)}})
		if in.checksumsBySoftware {
			add(checksums{device})
		}
		for _, c := range in.podCIDRs {
			if c.Addr().Is6() {
				add(sysctl{"net/ipv6/conf/" + device + "/accept_ra", "0"})
			}
			add(address{device, vtepIP(c)})
		}
		for _, p := range byFamily[v4] {
			add := func(o object) { out = append(out, desiredObject{object: o, peer: p.Name}) }
			mac := vtepMAC(p.PodCIDRs)
			remote, _ := p.underlay(v4)
			add(forward{device, mac, remote})
			for _, c := range p.PodCIDRs {
				own, ok := sameFamily(in.podCIDRs, c.Addr())
				if !ok {
					continue
				}
				add(neighbour{device, vtepIP(c), mac})
				add(route{dst: c, device: device, src: gateway(own), via: vtepIP(c), onlink: true, mtu: in.routeMTU(c)})
			}
		}
	}
	return out, unreachable
}
