// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// backend is one kind of way to the pods of other nodes. Its methods are pure: what they return is compared with the
// kernel and applied by the same pass as the rest of the host's side (host.go).
type backend interface {
	// overhead is by how much a packet grows on an underlay of that family, in bytes.
	overhead(v4 bool) int
	// port is the UDP port at which other nodes' packets come; 0 for none.
	port() int
	// desired are the devices, routes and entries that lead to the peers' pods, in the order in which they have to be
	// made, and what is wrong with single peers.
	desired(in waysInput) ([]wanted, []peerTrouble)
	// rules are the back end's part of the nftables table.
	rules(rs *ruleset, in waysInput)
}

// newBackend returns the back end of a name of clusterconfig.NetworkBackends, apart from none.
func (s *Server) newBackend(name string) (backend, error) {
	switch name {
	case clusterconfig.NetworkVXLAN:
		return vxlan{}, nil
	case clusterconfig.NetworkHostGateway:
		return hostGateway{}, nil
	case clusterconfig.NetworkWireGuard:
		return wireGuard{s.WireGuardKey(), s.o.ClusterCIDRs}, nil
	}
	return nil, fmt.Errorf("cni: there is no network back end that is called %q", name)
}

// waysInput is all that the ways to other nodes follow from.
type waysInput struct {
	// podCIDRs are this node's.
	podCIDRs []netip.Prefix
	peers    []Peer // as acceptable returns them
	underlay underlay
	// external are addresses at which peers find this node instead of the underlay's.
	external []netip.Addr
	sizes
	// checksumsBySoftware says that the underlay's device or the kernel computes wrong checksums of packets inside a
	// tunnel.
	checksumsBySoftware bool
}

func (in waysInput) equal(old waysInput) bool {
	return slices.Equal(in.podCIDRs, old.podCIDRs) && slices.EqualFunc(in.peers, old.peers, Peer.equal) &&
		in.underlay.equal(old.underlay) && slices.Equal(in.external, old.external) &&
		in.sizes == old.sizes && in.checksumsBySoftware == old.checksumsBySoftware
}

// overhead is the back end's on the families that lead to the peers; a node without peers has the size that it will
// have with them.
func (in waysInput) overhead(b backend) int {
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

// peerTrouble says why a peer's pods cannot be reached.
type peerTrouble struct {
	peer, why string
}

// family is that of the addresses between this node and a peer: IPv4 where both have it. Both nodes come to the same
// result by themselves.
func (in waysInput) family(p Peer) (v4, ok bool) {
	for _, v4 := range []bool{true, false} {
		_, own := in.underlay.address(v4)
		_, remote := p.underlay(v4)
		if own && remote {
			return v4, true
		}
	}
	return false, false
}

// acceptable leaves out what a Node must not have: pod networks that are not the cluster's, or that overlap this node's
// or those of an older peer. It is pure.
func acceptable(peers []Peer, own, clusterCIDRs []netip.Prefix) ([]Peer, []peerTrouble) {
	var out []Peer
	var trouble []peerTrouble
	taken := slices.Clone(own)
	for _, p := range peers {
		var cidrs []netip.Prefix
		for _, c := range p.PodCIDRs {
			c = c.Masked()
			switch {
			case !slices.ContainsFunc(clusterCIDRs, func(n netip.Prefix) bool { return n.Bits() <= c.Bits() && n.Contains(c.Addr()) }):
				trouble = append(trouble, peerTrouble{p.Name, fmt.Sprintf("its pod network %s is not in the cluster's %v", c,
					clusterCIDRs)})
			case slices.ContainsFunc(taken, c.Overlaps):
				trouble = append(trouble, peerTrouble{p.Name, fmt.Sprintf("its pod network %s is another node's, too", c)})
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
	return out, trouble
}

const (
	// minMTU6 is what every link has to carry that IPv6 is to use (RFC 8200, section 5): the kernel switches IPv6 off
	// on a device with less.
	minMTU6 = 1280
	// minMTU4 is the least at which IPv4 is of use; no underlay is below it on purpose.
	minMTU4 = 576
)

// sizes are those of pods' packets. It is pure.
type sizes struct {
	// mtu is that of pods' devices and of the tunnel.
	mtu int
	// whole4 is the largest IPv4 packet that reaches another node in one piece, where that is less than mtu: routes
	// carry it. 0 otherwise.
	whole4 int
}

// routeMTU is for routes to a network; 0 where the device says enough.
func (s sizes) routeMTU(dst netip.Prefix) int {
	if dst.Addr().Is4() {
		return s.whole4
	}
	return 0
}

// sizesFor derives them from the underlay's MTU and what the back end adds. Where that leaves less than IPv6 needs,
// IPv6 packets of pods are sent in two pieces, which the tunnel's ends cut and put together; IPv4 packets fit, since
// routes tell their size.
func sizesFor(underlayMTU, overhead int, podCIDRs []netip.Prefix) sizes {
	whole := max(underlayMTU-overhead, minMTU4)
	_, v6 := sameFamily(podCIDRs, netip.IPv6Unspecified())
	if v6 && whole < minMTU6 {
		return sizes{mtu: minMTU6, whole4: whole}
	}
	return sizes{mtu: whole}
}
