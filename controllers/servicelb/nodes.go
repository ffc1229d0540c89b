// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/internal/lbholders"
)

// node is one that can serve, with its addresses.
type node struct {
	name      string
	labels    labels.Set
	addresses []netip.Addr
	networks  []netip.Prefix // in which it can answer for addresses
}

// servingNodes are the nodes whose addresses Services may have, by name. Those that are not ready are left out, unless none would remain: when all have
// gone at once, then more probably the one who says so is alone.
func servingNodes(all []*corev1.Node) []node {
	chosen := slices.ContainsFunc(all, labelled)
	var ready, rest []node
	for _, n := range all {
		if _, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]; excluded || n.DeletionTimestamp != nil || chosen && !labelled(n) {
			continue
		}
		out := node{name: n.Name, labels: n.Labels, addresses: addresses(n), networks: networks(n)}
		if isReady(n) {
			ready = append(ready, out)
		} else {
			rest = append(rest, out)
		}
	}
	if len(ready) == 0 {
		ready = rest
	}
	slices.SortFunc(ready, func(a, b node) int { return strings.Compare(a.name, b.name) })
	return ready
}

func labelled(n *corev1.Node) bool {
	return n.Labels[NodeLabel] == "true" || n.Labels[k3sNodeLabel] == "true"
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// addresses are a node's, external ones first. The internal ones are in, too: what a router sends on from an external one comes in for those.
func addresses(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind && !slices.Contains(out, ip) {
				out = append(out, ip)
			}
		}
	}
	return out
}

func networks(n *corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for text := range strings.SplitSeq(n.Annotations[lbholders.NetworksAnnotation], ",") {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// ofFamilies are those of the addresses that a Service can have, in the order of its families.
func ofFamilies(all []netip.Addr, svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, f := range svc.Spec.IPFamilies {
		for _, a := range all {
			if a.Is4() == (f == corev1.IPv4Protocol) {
				out = append(out, a)
			}
		}
	}
	return out
}
