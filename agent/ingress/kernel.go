// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// NFTable returns the proxy's table in the kernel. It drops packets to the proxy's ports that no Service proxy has sent
// there, so that a Service's source ranges hold. It blocks the proxy's connections to the machine's own and to the
// cluster's ports, since tenants decide its endpoints.
func NFTable() nft.Table {
	return nft.Table{Family: nft.INet, Name: nft.IngressTable}
}

// forbidden are networks to which the proxy opens no connection, beside those of Services: its endpoints are pods,
// nodes, and machines outside.
var forbidden = []string{"127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"}

// refuse replies at once, so that a request fails without waiting.
const refuse = "reject with icmpx admin-prohibited"

// kernelState is what the nftables rules of the ingress proxy are computed from.
type kernelState struct {
	ports, udp     []int // the ports on which the proxy listens
	pods, services []netip.Prefix
	nodes          []netip.Addr
	reserved       []uint16       // ports of nodes that are the cluster's
	podNetworks    []netip.Prefix // networks of this node's pods
}

// rules returns the table's chains with their rules. A pod's packet may come from another node, whose Service proxy has
// changed the destination, without a second change on this node: so packets from pods and nodes are accepted. Packets
// from the proxy to pods get a separate source address, by which NetworkPolicies on other nodes recognise the proxy.
func (s kernelState) rules() map[string][]string {
	var inside4, inside6, pods4, pods6, services4, services6, nodes4, nodes6 []string
	split := func(p netip.Prefix, to4, to6 *[]string) {
		if p.Addr().Is4() {
			*to4 = append(*to4, p.String())
		} else {
			*to6 = append(*to6, p.String())
		}
	}
	for _, p := range s.pods {
		split(p, &inside4, &inside6)
		split(p, &pods4, &pods6)
	}
	for _, p := range s.services {
		split(p, &services4, &services6)
	}
	for _, a := range s.nodes {
		split(netip.PrefixFrom(a, a.BitLen()), &inside4, &inside6)
		split(netip.PrefixFrom(a, a.BitLen()), &nodes4, &nodes6)
	}
	for _, p := range forbidden {
		split(netip.MustParsePrefix(p), &services4, &services6)
	}
	ports := nft.Numbers(s.ports)
	own := []string{"tcp dport { " + ports + " } ct original proto-dst { " + ports + " } "}
	if len(s.udp) > 0 {
		udp := nft.Numbers(s.udp)
		own = append(own, "udp dport { "+udp+" } ct original proto-dst { "+udp+" } ")
	}
	mine := "meta skuid " + strconv.Itoa(User) + " ct direction original "
	out := map[string][]string{}
	for _, f := range []struct {
		family                        string
		inside, pods, services, nodes []string
	}{{"ip", inside4, pods4, services4, nodes4}, {"ip6", inside6, pods6, services6, nodes6}} {
		inside := setOf(f.inside)
		for _, own := range own {
			drop := "meta nfproto " + map[string]string{"ip": "ipv4", "ip6": "ipv6"}[f.family] + " " + own
			if len(f.inside) > 0 {
				drop = own + f.family + " saddr != { " + inside + " } "
			}
			out["input"] = append(out["input"], drop+"drop")
		}
		local := map[string]string{"ip": "127.0.0.0/8", "ip6": "::1"}[f.family]
		// The machine's resolver often listens at loopback, such as 127.0.0.53. No endpoint is reached by UDP.
		out["output"] = append(out["output"], mine+f.family+" daddr "+local+" udp dport 53 accept")
		out["output"] = append(out["output"], mine+f.family+" daddr { "+setOf(f.services)+" } "+refuse)
		if source, ok := s.source(f.family == "ip"); ok && len(f.pods) > 0 {
			snat := " snat " + f.family + " to " + source.String()
			out["postrouting"] = append(out["postrouting"], mine+f.family+" daddr { "+setOf(f.pods)+" }"+snat)
		}
		if len(f.nodes) > 0 && len(s.reserved) > 0 {
			out["output"] = append(out["output"], mine+f.family+" daddr { "+setOf(f.nodes)+" } tcp dport { "+nft.Numbers(s.reserved)+" } "+
				refuse)
		}
	}
	return out
}

// source returns the address from which the proxy connects to pods. It returns false if that is the node's usual one.
func (s kernelState) source(v4 bool) (netip.Addr, bool) {
	for _, c := range s.podNetworks {
		if c.Addr().Is4() == v4 {
			return clusterconfig.IngressSource(c), true
		}
	}
	return netip.Addr{}, false
}

func setOf(all []string) string {
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// apply replaces the whole table.
func apply(ctx context.Context, rules map[string][]string) error {
	program, err := knftables.New(knftables.InetFamily, nft.IngressTable)
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	tx := program.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	for _, c := range []struct {
		hook     knftables.BaseChainHook
		kind     knftables.BaseChainType
		priority knftables.BaseChainPriority
	}{
		{knftables.InputHook, knftables.FilterType, knftables.FilterPriority},
		{knftables.OutputHook, knftables.FilterType, knftables.FilterPriority},
		{knftables.PostroutingHook, knftables.NATType, knftables.SNATPriority},
	} {
		name := string(c.hook)
		tx.Add(&knftables.Chain{Name: name, Type: &c.kind, Hook: &c.hook, Priority: &c.priority})
		for _, rule := range rules[name] {
			tx.Add(&knftables.Rule{Chain: name, Rule: rule})
		}
	}
	if err := program.Run(ctx, tx); err != nil {
		return fmt.Errorf("writing the nftables table %s: %w", nft.IngressTable, err)
	}
	return nil
}

// protect writes the rules that follow from the cluster's nodes. It writes nothing while they stay the same.
func (n *Node) protect(ctx context.Context, ports, udp []int) error {
	s := kernelState{
		ports: ports, udp: udp, pods: n.o.PodCIDRs, services: n.o.ServiceCIDRs, reserved: n.o.Reserved, nodes: n.nodeAddresses(),
		podNetworks: n.ownNetworks(),
	}
	rules := s.rules()
	text := fmt.Sprint(rules)
	if text == n.rules {
		return nil
	}
	if err := apply(ctx, rules); err != nil {
		return err
	}
	n.rules = text
	return nil
}

// ownNetworks returns the networks of this node's pods. It returns none where another plugin makes the pod network.
func (n *Node) ownNetworks() []netip.Prefix {
	node, err := n.o.Nodes.Lister().Get(n.o.PodNetworkOf)
	if err != nil {
		return nil
	}
	return clusterconfig.PodCIDRs(node)
}

// nodeAddresses returns the addresses of all nodes, including this one.
func (n *Node) nodeAddresses() []netip.Addr {
	out := slices.Clone(n.o.NodeIPs)
	nodes, _ := n.o.Nodes.Lister().List(allObjects()) // of a cache: it cannot fail
	for _, node := range nodes {
		out = append(out, clusterconfig.NodeAddresses(node, corev1.NodeInternalIP, corev1.NodeExternalIP)...)
	}
	return out
}

// tableDeleted makes protect write the table again, unless this program itself had deleted it to replace it.
func (n *Node) tableDeleted() {
	there, err := nft.Exists(NFTable())
	if err == nil && there {
		return
	}
	n.o.Logger.Warn("ingress: another program has deleted the proxy's nftables table, which is written again", "error", err)
	n.rules = ""
}
