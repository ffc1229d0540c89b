// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// backend is one kind of connection between the pods of different nodes. Its methods are pure: their results are
// compared with the kernel and applied together with the rest of the host's side (host.go).
type backend interface {
	// overhead returns by how many bytes a packet grows on an underlay of that family.
	overhead(v4 bool) int
	// port returns the UDP port for packets from other nodes, or 0.
	port() int
	// desired returns the devices, routes and entries that lead to the peers' pods, in the order in which they have to
	// be made. It also returns the problems of single peers.
	desired(in pathInput) ([]desiredObject, []unreachablePeer)
	// rules adds the back end's rules to the nftables table.
	rules(rs *ruleset, in pathInput)
}

// newBackend returns the back end for a name of clusterconfig.NetworkBackends, except none.
func (pn *podNetwork) newBackend(name string) (backend, error) {
	switch name {
	case clusterconfig.NetworkVXLAN:
		return vxlan{}, nil
	case clusterconfig.NetworkHostGateway:
		return hostGateway{}, nil
	case clusterconfig.NetworkWireGuard:
		return wireGuard{pn.WireGuardKey(), pn.o.ClusterCIDRs}, nil
	}
	return nil, fmt.Errorf("cni: there is no network back end that is called %q", name)
}

// pathInput is the whole input for computing the connections to other nodes.
type pathInput struct {
	// podCIDRs are this node's pod networks.
	podCIDRs []netip.Prefix
	peers    []Peer // as acceptable returns them
	underlay underlay
	// external are the addresses at which peers reach this node, in place of the underlay's.
	external []netip.Addr
	sizes
	// checksumsBySoftware means that the underlay's device or the kernel computes wrong checksums of packets inside a
	// tunnel.
	checksumsBySoftware bool
}

func (in pathInput) equal(old pathInput) bool {
	return slices.Equal(in.podCIDRs, old.podCIDRs) && slices.EqualFunc(in.peers, old.peers, Peer.equal) &&
		in.underlay.equal(old.underlay) && slices.Equal(in.external, old.external) &&
		in.sizes == old.sizes && in.checksumsBySoftware == old.checksumsBySoftware
}

// overhead returns the most bytes that a back end adds to a packet, in the address families that lead to the peers. The
// family of this node's first address always counts, so that the size stays the same when the first peer joins.
func (in pathInput) overhead(b backend) int {
	out := 0
	if len(in.underlay.addresses) > 0 {
		out = b.overhead(in.underlay.addresses[0].Addr().Is4())
	}
	for _, p := range in.peers {
		if v4, ok := in.family(p); ok {
			out = max(out, b.overhead(v4))
		}
	}
	return out
}

// unreachablePeer is the reason why a peer's pods cannot be reached.
type unreachablePeer struct {
	peer, reason string
}

// family returns the family of the addresses between this node and a peer: IPv4 where both have it. Both nodes get the
// same result independently.
func (in pathInput) family(p Peer) (v4, ok bool) {
	for _, v4 := range []bool{true, false} {
		_, own := in.underlay.address(v4)
		_, remote := p.underlay(v4)
		if own && remote {
			return v4, true
		}
	}
	return false, false
}

// acceptablePeers removes pod networks that a Node must not have: those outside the cluster's networks, and those that
// overlap this node's or an older peer's. It is pure.
func acceptablePeers(peers []Peer, own, clusterCIDRs []netip.Prefix) ([]Peer, []unreachablePeer) {
	var out []Peer
	var unreachable []unreachablePeer
	taken := slices.Clone(own)
	for _, p := range peers {
		var cidrs []netip.Prefix
		for _, c := range p.PodCIDRs {
			c = c.Masked()
			switch {
			case !slices.ContainsFunc(clusterCIDRs, func(n netip.Prefix) bool { return n.Bits() <= c.Bits() && n.Contains(c.Addr()) }):
				unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("its pod network %s is not in the cluster's %v", c,
					clusterCIDRs)})
			case slices.ContainsFunc(taken, c.Overlaps):
				unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("its pod network %s is another node's, too", c)})
			default:
				cidrs = append(cidrs, c)
			}
		}
		if len(cidrs) > 0 {
			taken = append(taken, cidrs...)
			p.PodCIDRs = cidrs
			out = append(out, p)
		}
	}
	return out, unreachable
}

const (
	// minMTU6 is the smallest MTU of a link with IPv6 (RFC 8200, section 5). The kernel disables IPv6 on a device with
	// less.
	minMTU6 = 1280
	// minMTU4 is the smallest useful MTU for IPv4. No underlay is configured below it.
	minMTU4 = 576
)

// sizes has the sizes of packets that pods may send.
type sizes struct {
	// mtu is the MTU of pods' devices and of the tunnel.
	mtu int
	// whole4 is the largest IPv4 packet that reaches another node unfragmented, where that is less than mtu: routes
	// then have it as their MTU. It is 0 otherwise.
	whole4 int
}

// routeMTU returns the MTU of routes to a network, or 0 where the device's MTU is right.
func (s sizes) routeMTU(dst netip.Prefix) int {
	if dst.Addr().Is4() {
		return s.whole4
	}
	return 0
}

// sizesFor derives the sizes from the underlay's MTU and the back end's overhead. Where less remains than IPv6 needs,
// the tunnel's ends fragment and reassemble pods' IPv6 packets, in two fragments each. IPv4 packets fit, since routes
// have their size.
func sizesFor(underlayMTU, overhead int, podCIDRs []netip.Prefix) sizes {
	whole := max(underlayMTU-overhead, minMTU4)
	_, v6 := sameFamily(podCIDRs, netip.IPv6Unspecified())
	if v6 && whole < minMTU6 {
		return sizes{mtu: minMTU6, whole4: whole}
	}
	return sizes{mtu: whole}
}
