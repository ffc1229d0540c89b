// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// UnreachablePairs returns which nodes would not reach one another's pods with host-gw, each pair once, as far as their
// Nodes show it: every node writes to its Node in which networks its machine is. If no listed network contains a node's
// own address, the node is assumed to be in all networks. A node that is reached at an external address is in the
// networks of its internal addresses. It is pure.
func UnreachablePairs(nodes []*corev1.Node) []string {
	all := peersOf(nodes, "")
	networks, machines := map[string][]netip.Prefix{}, map[string]*corev1.Node{}
	for _, n := range nodes {
		machines[n.Name] = n
		for text := range strings.SplitSeq(n.Annotations[loadbalancer.NetworksAnnotation], ",") {
			if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
				networks[n.Name] = append(networks[n.Name], p)
			}
		}
	}
	var out []string
	for i, a := range all {
		for _, c := range a.PodCIDRs {
			if _, ok := a.underlay(c.Addr().Is4()); !ok && len(all) > 1 {
				out = append(out, fmt.Sprintf("node %s has no address of the family of its pods' network %s", a.Name, c))
			}
		}
		for _, b := range all[i+1:] {
			if why := whyUnreachable(a, b, machines[a.Name], networks[a.Name]); why != "" {
				out = append(out, why)
			} else if why := whyUnreachable(b, a, machines[b.Name], networks[b.Name]); why != "" {
				out = append(out, why)
			}
		}
	}
	return out
}

// whyUnreachable returns the reason why node a has no gateway to the pods of node b. machine is the Node of a, and
// networks are those of a's interfaces. It returns "" if a has a gateway, or if that is unknown.
func whyUnreachable(a, b Peer, machine *corev1.Node, networks []netip.Prefix) string {
	for _, c := range b.PodCIDRs {
		v4 := c.Addr().Is4()
		own, ok := a.underlay(v4)
		via, ok2 := b.underlay(v4)
		if !ok || !ok2 {
			continue
		}
		at := []netip.Addr{own}
		if slices.Contains(nodeAddresses(machine, corev1.NodeExternalIP), own) { // which another machine may have
			at = append(at, nodeAddresses(machine, corev1.NodeInternalIP)...)
		}
		mine := slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool { return !slices.ContainsFunc(at, p.Contains) })
		if len(mine) > 0 && !slices.ContainsFunc(mine, func(p netip.Prefix) bool { return p.Contains(via) }) {
			return fmt.Sprintf("nodes %s (%s) and %s (%s) are not in one network", a.Name, own, b.Name, via)
		}
	}
	return ""
}
