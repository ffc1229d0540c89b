// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/hex"
	"fmt"
	"net/netip"

	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// A VXLAN datagram does not prove its sender, so the kernel would accept any machine's datagram as a peer's. The table
// can check the source address of the datagram and that of the packet inside: both have to belong to the same peer.
// docs/adr/0073 lists what that prevents and what it does not.

const (
	chainTunnelIn  = "tunnel-in"
	chainTunnelOut = "tunnel-out"
	chainTunnel    = "tunnel"
	setTunnel      = "tunnel" // followed by the families outside and inside
)

// Offsets of fields in a datagram, in bits from the beginning of its UDP header: 8 bytes of UDP, 8 of VXLAN, 14 of the
// inner Ethernet header.
const (
	atVNI     = (8 + 4) * 8
	atType    = (8 + 8 + 12) * 8
	atSource4 = (8 + 8 + 14 + 12) * 8
	atSource6 = (8 + 8 + 14 + 8) * 8
)

func (vxlan) rules(rs *ruleset, in pathInput) {
	if len(in.underlay.addresses) == 0 {
		return
	}
	rs.addBaseChain(chainTunnelIn, knftables.FilterType, knftables.InputHook, "-10")
	rs.objects = append(rs.objects, &knftables.Chain{Name: chainTunnel})
	rs.addRule(chainTunnelIn, fmt.Sprintf("udp dport %d @th,%d,24 %d jump %s", clusterconfig.VXLANPort, atVNI, vxlanVNI, chainTunnel))
	for _, outer := range []string{"ip", "ip6"} {
		for _, inner := range []struct{ etherType, source string }{
			{"0x0800", fmt.Sprintf("@th,%d,32", atSource4)},
			{"0x86dd", fmt.Sprintf("@th,%d,128", atSource6)},
		} {
			key, name := outer+" saddr . "+inner.source, tunnelSet(outer == "ip", inner.etherType == "0x0800")
			rs.objects = append(rs.objects, &knftables.Set{Name: name, TypeOf: key, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
			rs.addRule(chainTunnel, fmt.Sprintf("@th,%d,16 %s %s @%s return", atType, inner.etherType, key, name))
		}
	}
	rs.addRule(chainTunnel, "counter drop")
	rs.noTunnelsOfPods()
	rs.podsByTunnelOnly(in.underlay)
	for _, p := range in.peers {
		v4, ok := in.family(p)
		if !ok {
			continue
		}
		from, _ := p.underlay(v4)
		for _, c := range p.PodCIDRs {
			rs.tunnelSource(from, c)
		}
		for _, a := range p.Addresses { // the node itself sends these, as when a packet is too large
			rs.tunnelSource(from, netip.PrefixFrom(a, a.BitLen()))
		}
	}
}

// noTunnelsOfPods drops VXLAN datagrams that a pod sends to an address outside the cluster's networks, directly or
// through a Service. They are masqueraded to this node's address. So another node would accept them as this node's own,
// and the pod could pretend to be any pod of this node.
func (rs *ruleset) noTunnelsOfPods() {
	rs.addBaseChain(chainTunnelOut, knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority)
	for _, f := range ruleFamilies() {
		outside := fmt.Sprintf("udp dport %d %s daddr != @%s", clusterconfig.VXLANPort, f.proto, f.name(setCluster))
		rs.addRule(chainTunnelOut, "iifname", quote(devicePrefix+"*"), outside, "drop")
		rs.addRule(chainTunnelOut, "ct status dnat", outside, "drop")
	}
}

// podsByTunnelOnly drops packets from the underlay whose source is a pod's address. Packets of other nodes' pods arrive
// by the tunnel. Addresses of the cluster's networks that the default route reaches belong to no pod.
func (rs *ruleset) podsByTunnelOnly(u underlay) {
	for _, device := range []string{u.device, u.secondDevice} {
		if device == "" {
			continue
		}
		for _, f := range ruleFamilies() {
			rs.addRule(chainGuard, "iifname", quote(device), f.proto, "saddr @"+f.name(setCluster), "drop")
		}
	}
}

func tunnelSet(outer4, inner4 bool) string {
	digit := map[bool]string{true: "4", false: "6"}
	return setTunnel + "-" + digit[outer4] + digit[inner4]
}

func (rs *ruleset) tunnelSource(from netip.Addr, inside netip.Prefix) {
	rs.addElement(&knftables.Element{Set: tunnelSet(from.Is4(), inside.Addr().Is4()), Key: []string{from.String(), numberRange(inside)}})
}

// numberRange writes a network as a range of numbers, to compare with raw payload.
func numberRange(p netip.Prefix) string {
	first := "0x" + hex.EncodeToString(p.Masked().Addr().AsSlice())
	if p.IsSingleIP() {
		return first
	}
	return first + "-0x" + hex.EncodeToString(clusterconfig.LastAddress(p).AsSlice())
}
