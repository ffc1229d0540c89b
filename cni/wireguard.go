// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	kindWireGuard = "wireguard"
	// wireGuardDevice is the name of the tunnel's device.
	wireGuardDevice = tunnelPrefix + "wg"
	// keepalive is how often a node behind address translation sends a packet, in seconds: translators delete a flow of
	// datagrams after half a minute (RFC 4787, REQ-5 requires two minutes, many have less).
	keepalive = 25
)

// wireGuard encrypts packets between nodes. The kernel does that where it can, and otherwise wireguard-go in this
// process (wgdevice.go).
type wireGuard struct {
	public  string // this node's key
	cluster []netip.Prefix
}

// overhead returns the size of the datagram's headers, WireGuard's header (16) and its authentication tag (16).
func (wireGuard) overhead(v4 bool) int {
	if v4 {
		return 20 + 8 + 32
	}
	return 40 + 8 + 32
}

func (wireGuard) port() int { return clusterconfig.WireGuardPort }

// desired makes no route to a node whose key is unknown. The blackholes drop packets that the default route would
// otherwise send unencrypted: packets for pods that no node has, and packets for all pods while the device is missing.
func (w wireGuard) desired(in pathInput) (out []desiredObject, unreachable []unreachablePeer) {
	add := func(o object) { out = append(out, desiredObject{object: o}) }
	for _, c := range w.cluster {
		if _, ok := sameFamily(in.podCIDRs, c.Addr()); ok {
			add(blackhole{c.Masked()})
		}
	}
	add(link{name: wireGuardDevice, kind: kindWireGuard, mtu: in.mtu, up: true})
	for _, c := range in.podCIDRs {
		// A packet that is masqueraded on its way to a peer gets the device's address. It has to be one of this node's:
		// the peer drops packets from others.
		add(address{wireGuardDevice, vtepIP(c)})
	}
	add(wgIdentity{wireGuardDevice, w.public, clusterconfig.WireGuardPort})
	keys := map[string]string{w.public: "this node"}
	for _, p := range in.peers {
		key, err := wgtypes.ParseKey(p.WireGuardKey)
		switch owner := keys[key.String()]; { // a key can be encoded in several ways
		case p.WireGuardKey == "":
			unreachable = append(unreachable, unreachablePeer{p.Name, "it has not said its WireGuard key: its coracle is not running, or has another " +
				"--network-backend"})
			continue
		case err != nil:
			unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("its WireGuard key is none: %v", err)})
			continue
		case owner != "":
			unreachable = append(unreachable, unreachablePeer{p.Name, fmt.Sprintf("its WireGuard key is that of %s", owner)})
			continue
		}
		keys[key.String()] = p.Name
		peer, routes := w.peer(in, p)
		peer.key = key.String()
		out = append(out, desiredObject{object: peer, peer: p.Name})
		for _, r := range routes {
			out = append(out, desiredObject{object: r, peer: p.Name})
		}
	}
	return out, unreachable
}

func (w wireGuard) peer(in pathInput, p Peer) (wgPeer, []route) {
	peer := wgPeer{device: wireGuardDevice, name: p.Name}
	var allowed []string
	var routes []route
	for _, c := range p.PodCIDRs {
		own, ok := sameFamily(in.podCIDRs, c.Addr())
		if !ok {
			continue
		}
		allowed = append(allowed, c.Masked().String())
		routes = append(routes, route{dst: c.Masked(), device: wireGuardDevice, src: gateway(own), mtu: in.routeMTU(c)})
	}
	peer.allowed = strings.Join(allowed, ",")
	peer.endpoint, peer.keepalive = endpoint(in, p)
	return peer, routes
}

// endpoint returns the address at which a peer is reached, if there is one, and the keepalive interval in seconds with
// which the peer can continue to reach this node.
//
// A private address outside the underlay's networks can be reached only from private addresses (through some router
// between them). So a node that has a public address, or is reached at one, waits until such a peer sends first. Then
// it replies to the packet's source, which may be an address that a translator chose. The peer sends keepalives, so
// that the translator keeps its entry.
//
// A node whose external address is another machine's sends keepalives, too. Its packets may have another source port
// there than the port that leads to it. Peers reply to the last source that they saw, even when the translator has
// deleted that entry.
func endpoint(in pathInput, p Peer) (at netip.AddrPort, every int) {
	v4, ok := in.family(p)
	if !ok {
		return netip.AddrPort{}, 0
	}
	own, _ := in.underlay.address(v4)
	if external, found := ofFamily(in.external, v4); found && external != own {
		own, every = external, keepalive
	}
	remote, _ := p.underlay(v4)
	switch {
	case in.underlay.onLink(remote) || isPrivate(own) == isPrivate(remote):
		return netip.AddrPortFrom(remote, clusterconfig.WireGuardPort), every
	case isPrivate(own):
		return netip.AddrPortFrom(remote, clusterconfig.WireGuardPort), keepalive
	default:
		return netip.AddrPort{}, 0
	}
}

// sharedAddresses are the addresses behind a provider's address translators (RFC 6598).
var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10")

func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLinkLocalUnicast() || sharedAddresses.Contains(a)
}

// rules drops unencrypted packets from the underlay whose source is a pod's address: such packets arrive by the tunnel
// only.
func (w wireGuard) rules(rs *ruleset, in pathInput) {
	rs.podsByTunnelOnly(in.underlay)
}

// wgIdentity is what identifies a tunnel's device to other nodes.
type wgIdentity struct {
	device, public string
	port           int
}

func (w wgIdentity) id() string { return "wireguard dev " + w.device }
func (w wgIdentity) String() string {
	return w.id() + " key " + w.public + fmt.Sprint(" port ", w.port)
}

// wgPeer is another node, as configured in the tunnel's device.
type wgPeer struct {
	device, key string
	name        string // for messages
	// endpoint is the peer's configured endpoint. The device may have learned another one since. Invalid means that the
	// device waits for the peer's first packet.
	endpoint        netip.AddrPort
	allowed         string // networks, in the order of the peer's pod networks
	keepalive       int    // seconds; 0: none
	hasPresharedKey bool   // it has a preshared key, which no other node knows
}

func (p wgPeer) id() string { return "wireguard peer " + p.key + " dev " + p.device }

func (p wgPeer) String() string {
	s := p.id()
	if p.endpoint.IsValid() {
		s += " endpoint " + p.endpoint.String()
	}
	s += " allowed " + p.allowed
	if p.keepalive > 0 {
		s += fmt.Sprint(" keepalive ", p.keepalive)
	}
	return s
}

func (p wgPeer) satisfiedBy(have object) bool {
	h, ok := have.(wgPeer)
	h.name = p.name
	return ok && h == p
}

// blackhole is a route that drops packets without an error to the sender.
type blackhole struct{ dst netip.Prefix }

func (b blackhole) route() *netlink.Route {
	return &netlink.Route{Dst: ipNet(b.dst), Type: unix.RTN_BLACKHOLE, Protocol: routeProtocol}
}

func (b blackhole) id() string     { return "blackhole " + b.dst.String() }
func (b blackhole) String() string { return b.id() }
