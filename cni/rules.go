// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// tableName is our nftables table. No other program's tables are ever changed.
const tableName = "coracle"

// hostPort is one host port of one pod in one address family.
type hostPort struct {
	Host     netip.Addr // invalid: every address of the node
	Protocol string
	Port     uint16
	Pod      netip.Addr
	PodPort  uint16
}

// loopback4 is the only loopback address at which host ports are served.
var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// hostIP parses the hostIP of a port mapping. It returns the address that it names, if any, and whether it restricts
// the mapping to IPv4 (4), to IPv6 (6), or not at all (0).
func hostIP(s string) (addr netip.Addr, family int, err error) {
	if s == "" {
		return netip.Addr{}, 0, nil
	}
	addr, err = netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("hostIP %q is no address", s)
	}
	family = 6
	if addr = addr.Unmap(); addr.Is4() {
		family = 4
		if addr.IsLoopback() && addr != loopback4 {
			return netip.Addr{}, 0,
				fmt.Errorf("hostIP %q is a loopback address at which no host port answers: of these they answer at %v alone", s, loopback4)
		}
	}
	if addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	return addr, family, nil
}

// hostPorts lists the host ports of a pod: one for each of the pod's address families that the mapping covers.
func (r *attachment) hostPorts() []hostPort {
	var out []hostPort
	for _, m := range r.Ports {
		host, family, err := hostIP(m.HostIP)
		if err != nil {
			continue // ADD rejects those
		}
		for _, ip := range r.IPs {
			if family == 4 && !ip.Is4() || family == 6 && !ip.Is6() {
				continue
			}
			out = append(out, hostPort{host, m.Protocol, m.HostPort, ip, m.ContainerPort})
		}
	}
	return out
}

// usesLoopback reports whether some host port of the pod is served at 127.0.0.1.
func usesLoopback(r *attachment) bool {
	return slices.ContainsFunc(r.hostPorts(), func(p hostPort) bool {
		return p.Pod.Is4() && (!p.Host.IsValid() || p.Host.IsLoopback())
	})
}

// Names in the table. Those that exist per address family end in 4 or 6.
const (
	chainHostPorts   = "host-ports"
	chainGuard       = "guard"
	chainErrors      = "errors"
	chainPodErrors   = "errors-of-pods"
	chainPrerouting  = "nat-prerouting"
	chainOutput      = "nat-output"
	chainPostrouting = "nat-postrouting"
	setPods          = "pods"
	setCluster       = "cluster"
	setHairpin       = "hairpin"
	setServices      = "services"
	setSenders       = "senders"
	mapPorts         = "ports"
	mapAddressPorts  = "address-ports"
)

// ruleset is the content of a whole table, in the order in which it has to be added.
type ruleset struct {
	objects []knftables.Object // chains, sets and maps
	content []knftables.Object // rules and elements
}

// desiredTable computes the table from the node's and the cluster's pod CIDRs, Services' networks and addresses, the
// living pods' host ports, and the ports on which the node itself listens. It is pure.
func desiredTable(podCIDRs, clusterCIDRs, services []netip.Prefix, ports []hostPort, reserved []uint16) ruleset {
	var rs ruleset
	// Host ports come before Services' node ports, whose chains have priority dstnat (-100).
	rs.addBaseChain(chainGuard, knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority)
	// Behind connection tracking and before any translation, so that addresses are those that the pod uses.
	rs.addBaseChain(chainErrors, knftables.FilterType, knftables.PreroutingHook, "-150")
	rs.addBaseChain(chainPrerouting, knftables.NATType, knftables.PreroutingHook, "-110")
	rs.addBaseChain(chainOutput, knftables.NATType, knftables.OutputHook, "-110")
	rs.addBaseChain(chainPostrouting, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority)
	rs.objects = append(rs.objects, &knftables.Chain{Name: chainHostPorts}, &knftables.Chain{Name: chainPodErrors})

	// A pod may send from its own address only, and never to the host's loopback, which host ports make reachable.
	pods := "iifname " + quote(devicePrefix+"*")
	rs.addRule(chainGuard, pods, "ip daddr 127.0.0.0/8 drop")
	rs.addRule(chainGuard, pods, "ip saddr 0.0.0.0 drop") // which the next rule would let the pod broadcast
	rs.addRule(chainGuard, pods, "meta nfproto ipv4 fib saddr . iif oif 0 drop")
	// Every pod has an IPv6 link-local address, requested or not, and the node has one that is easy to guess. It is
	// only for neighbour discovery. Policies do not know whose packets these are, and a router advertisement would give
	// the host addresses and a default route through the pod.
	rs.addRule(chainGuard, pods, "ip6 saddr { ::, fe80::/10 } meta l4proto != ipv6-icmp drop")
	rs.addRule(chainGuard, pods, "ip6 saddr { ::, fe80::/10 } icmpv6 type != { nd-neighbor-solicit, nd-neighbor-advert } drop")
	rs.addRule(chainGuard, pods, "ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif 0 drop")
	// The sender of an ICMP error chooses its content, and the receiver applies it to the connection that it names. A
	// pod is no router, so it may send errors about its own connections only. Otherwise it could reach an end of any
	// other connection, whatever NetworkPolicies say.
	rs.addRule(chainErrors, "meta l4proto { icmp, ipv6-icmp }", pods, "jump", chainPodErrors)
	rs.addRule(chainPodErrors, "icmp type != { destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem } return")
	rs.addRule(chainPodErrors, "icmpv6 type >= 128 return") // all others are errors, also those that are not assigned (RFC 4443)
	rs.addRule(chainPrerouting, "fib daddr type local jump", chainHostPorts)
	rs.output(reserved)
	// A host process that connects to 127.0.0.1 must get a source address to which the pod can reply.
	rs.addRule(chainPostrouting, "oifname", quote(devicePrefix+"*"), "ip saddr 127.0.0.0/8 masquerade")
	for _, f := range ruleFamilies() {
		// No other sender may use a pod's address either, except by the device that leads to the pod: another machine
		// on the segment may try it.
		rs.addRule(chainGuard, "iifname !=", quote(devicePrefix+"*"), f.proto, "saddr @"+f.name(setCluster), "fib saddr . iif oif 0 drop")
		rs.family(f, podCIDRs, clusterCIDRs, services, ports)
	}
	rs.addRule(chainPodErrors, "counter drop")
	return rs
}

// output fills the chain for packets of the node's own programs.
func (rs *ruleset) output(reserved []uint16) {
	// No other namespace can reply for ::1. When the kernel refuses it at once, clients try 127.0.0.1.
	rs.addRule(chainOutput, "ip6 daddr ::1 return")
	// Other loopback addresses have listeners of the host: clusterconfig.Loopback, and 127.0.0.53 of systemd-resolved.
	rs.addRule(chainOutput, "ip daddr 127.0.0.0/8 ip daddr !=", loopback4.String(), "return")
	// Packets of the node's own programs to a reserved port go to no pod, not even to one that had the port before it
	// was reserved.
	if len(reserved) > 0 {
		rs.addRule(chainOutput, "ip daddr", loopback4.String(), "tcp dport {", nft.Numbers(reserved), "} return")
	}
	rs.addRule(chainOutput, "fib daddr type local jump", chainHostPorts)
}

// family has nftables' names for an address family.
type family struct {
	n                        int
	proto, addrType, nfproto string
	multicast                string
}

func ruleFamilies() []family {
	return []family{
		{4, "ip", "ipv4_addr", "ipv4", "224.0.0.0/4"},
		{6, "ip6", "ipv6_addr", "ipv6", "ff00::/8"},
	}
}

func (f family) name(s string) string       { return s + strconv.Itoa(f.n) }
func (f family) contains(a netip.Addr) bool { return a.Is4() == (f.n == 4) }
func (f family) hasNet(p netip.Prefix) bool { return f.contains(p.Addr()) }

func (rs *ruleset) family(f family, podCIDRs, clusterCIDRs, services []netip.Prefix, ports []hostPort) {
	interval := []knftables.SetFlag{knftables.IntervalFlag}
	pair := f.addrType + " . inet_service"
	rs.objects = append(rs.objects,
		&knftables.Set{Name: f.name(setPods), Type: f.addrType, Flags: interval},
		&knftables.Set{Name: f.name(setCluster), Type: f.addrType, Flags: interval},
		&knftables.Set{Name: f.name(setHairpin), Type: f.addrType + " . " + f.addrType},
		&knftables.Set{Name: f.name(setServices), Type: f.addrType, Flags: interval},
		&knftables.Map{Name: f.name(mapAddressPorts), Type: f.addrType + " . inet_proto . inet_service : " + pair},
		&knftables.Map{Name: f.name(mapPorts), Type: "inet_proto . inet_service : " + pair},
	)
	// nft cannot compare two fields of a packet. So the rule above the lookup adds each sender to the set, paired with
	// itself.
	rs.objects = append(rs.objects, &knftables.Set{
		Name: f.name(setSenders), Type: f.addrType + " . " + f.addrType, Flags: []knftables.SetFlag{knftables.DynamicFlag,
			knftables.TimeoutFlag}, Size: knftables.PtrTo[uint64](1 << 16),
	})
	rs.addRule(chainPodErrors, "update", "@", f.name(setSenders), "{", f.proto, "saddr .", f.proto, "saddr timeout 60s }")
	for _, way := range []string{"original", "reply"} {
		rs.addRule(chainPodErrors, "ct state related", f.proto, "saddr . ct", way, f.proto, "saddr @"+f.name(setSenders), "return")
	}
	rs.addRule(chainHostPorts, f.proto, "daddr @"+f.name(setServices), "return") // the kernel calls them local where IPVS serves them
	rs.addRule(chainHostPorts, "dnat", f.proto, "to", f.proto, "daddr . meta l4proto . th dport map @"+f.name(mapAddressPorts))
	rs.addRule(chainHostPorts, "meta nfproto", f.nfproto, "dnat", f.proto, "to meta l4proto . th dport map @"+f.name(mapPorts))
	// A pod that reaches itself by a host port must see another source address than its own. Otherwise it replies to
	// itself.
	rs.addRule(chainPostrouting, f.proto, "saddr .", f.proto, "daddr @"+f.name(setHairpin), "masquerade")
	rs.addRule(chainPostrouting, f.proto, "saddr @"+f.name(setPods), f.proto, "daddr != @"+f.name(setCluster),
		f.proto, "daddr !=", f.multicast, "masquerade fully-random")

	rs.addNetworks(f, setPods, podCIDRs)
	rs.addNetworks(f, setCluster, clusterCIDRs)
	rs.addNetworks(f, setServices, services)
	seen := map[string]bool{} // two pods with the same port: the scheduler prevents that; here the first gets it
	for _, p := range ports {
		if !f.contains(p.Pod) {
			continue
		}
		key, name := []string{p.Protocol, strconv.Itoa(int(p.Port))}, f.name(mapPorts)
		if p.Host.IsValid() {
			key, name = append([]string{p.Host.String()}, key...), f.name(mapAddressPorts)
		}
		if id := fmt.Sprint(key); !seen[id] {
			seen[id] = true
			rs.addElement(&knftables.Element{Map: name, Key: key, Value: []string{p.Pod.String(), strconv.Itoa(int(p.PodPort))}})
		}
		if id := p.Pod.String(); !seen[id] {
			seen[id] = true
			rs.addElement(&knftables.Element{Set: f.name(setHairpin), Key: []string{id, id}})
		}
	}
}

// addNetworks adds the networks of a family to a set.
func (rs *ruleset) addNetworks(f family, set string, networks []netip.Prefix) {
	for _, p := range networks {
		if f.hasNet(p) {
			rs.addElement(&knftables.Element{Set: f.name(set), Key: []string{p.Masked().String()}})
		}
	}
}

func (rs *ruleset) addBaseChain(name string, t knftables.BaseChainType, hook knftables.BaseChainHook, prio knftables.BaseChainPriority) {
	rs.objects = append(rs.objects, &knftables.Chain{Name: name, Type: &t, Hook: &hook, Priority: &prio})
}

func (rs *ruleset) addRule(chain string, words ...any) {
	rs.content = append(rs.content, &knftables.Rule{Chain: chain, Rule: knftables.Concat(words...)})
}

func (rs *ruleset) addElement(e *knftables.Element) { rs.content = append(rs.content, e) }

func quote(s string) string { return strconv.Quote(s) }
