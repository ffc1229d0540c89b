// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	componentutil "k8s.io/component-helpers/node/util"
	nodeutil "k8s.io/kubernetes/pkg/util/node"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// node is a node that can serve, with its addresses.
type node struct {
	name      string
	labels    labels.Set
	addresses []netip.Addr
	networks  []netip.Prefix // in which it can announce addresses
}

// servingNodes returns the nodes whose addresses Services may have, ordered by name. It leaves out nodes that are not
// ready, unless none would remain. If none is ready, this server is more probably the one that is cut off from
// the network.
func (s *State) servingNodes() []node {
	trusted := s.trusted()
	chosen := slices.ContainsFunc(s.Nodes, hasNodeLabel)
	var ready, rest []node
	for _, n := range s.Nodes {
		if _, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]; excluded || n.DeletionTimestamp != nil || chosen && !hasNodeLabel(n) {
			continue
		}
		out := node{name: n.Name, labels: n.Labels, addresses: trusted[n.Name], networks: nodeNetworks(n)}
		if nodeutil.IsNodeReady(n) {
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

func hasNodeLabel(n *corev1.Node) bool {
	return n.Labels[NodeLabel] == "true" || n.Labels[k3sNodeLabel] == "true"
}

// trusted returns the trusted addresses of nodes, by the nodes' names. A Node's status is set by that node itself, and
// the API server compares it with the machine's join (docs/adr/0067-what-a-node-is-believed.md). An address that a pool
// has allocated to a Service stays with the Service. Of two nodes with an address, the responsive one has it, then the
// older one. Only nodes of servers have barred addresses.
func (s *State) trusted() map[string][]netip.Addr {
	given, had, out := s.pooledAddresses(), map[netip.Addr]bool{}, map[string][]netip.Addr{}
	for _, n := range slices.SortedFunc(slices.Values(s.Nodes), func(a, b *corev1.Node) int {
		return cmp.Or(readinessRank(a)-readinessRank(b), a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			strings.Compare(a.Name, b.Name))
	}) {
		_, server := n.Labels[serverLabel]
		for _, a := range nodeAddresses(n) {
			if !given[a] && !had[a] && (server || !slices.Contains(s.Barred, a)) {
				out[n.Name] = append(out[n.Name], a)
			}
			had[a] = true
		}
	}
	return out
}

// readinessRank returns 1 for an unresponsive node and 0 for any other, to sort nodes with the same address: a machine
// that replaces a dead one has that one's address.
func readinessRank(n *corev1.Node) int {
	if _, c := componentutil.GetNodeCondition(&n.Status, corev1.NodeReady); c != nil && c.Status == corev1.ConditionUnknown {
		return 1
	}
	return 0
}

// pooledAddresses returns the addresses that Services have from a pool, by their status.
func (s *State) pooledAddresses() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, svc := range s.Services {
		if !s.serves(svc) || meta.FindStatusCondition(svc.Status.Conditions, Condition) == nil {
			continue
		}
		for _, a := range poolAddresses(svc) {
			if s.poolOf(a) != nil {
				out[a] = true
			}
		}
	}
	return out
}

// nodeAddresses returns the addresses in a Node's status, external ones first. It includes internal ones: packets for
// an external address that a router forwards arrive at an internal one.
func nodeAddresses(n *corev1.Node) []netip.Addr {
	out := clusterconfig.NodeAddresses(n, corev1.NodeExternalIP)
	for _, a := range clusterconfig.NodeAddresses(n, corev1.NodeInternalIP) {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func nodeNetworks(n *corev1.Node) []netip.Prefix {
	return convert.Valid(strings.Split(n.Annotations[loadbalancer.NetworksAnnotation], ","), netip.ParsePrefix)
}

// ofFamilies returns the addresses that a Service can have, in the order of its families.
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
