// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// State is the whole input for the rules of one node.
type State struct {
	// Node is this node's name.
	Node string
	// Sandboxes are the pods with a network on this node, as the pod network has recorded them: their addresses are
	// right, whatever a pod's status says.
	Sandboxes []Sandbox
	// Pods are those of all nodes. Pods that have ended may be included.
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	Policies   []*networkingv1.NetworkPolicy
	// Nodes are all nodes: for a pod of another node only addresses inside that node's pod CIDRs are trusted.
	Nodes []*corev1.Node
	// Refused are namespaces whose rules the kernel rejected. A rejection counts while the rules are unchanged.
	Refused map[string]RejectedNamespace
	// DNS has the addresses at which this node's pods reach the cluster's DNS, which is no pod; see dns.go.
	DNS DNS
}

// Sandbox is a pod's network on this node. UID is empty where it was not recorded.
type Sandbox = netinformers.Sandbox

// podKey identifies a pod by its namespace and name.
type podKey struct{ namespace, name string }

// ref is a pod that policies can select, with its last known addresses.
type ref struct {
	pod *corev1.Pod
	ips []netip.Addr
}

// cluster is a State with indexes for lookups.
type cluster struct {
	labels   map[string]map[string]string // namespace → its labels
	pods     map[podKey]*corev1.Pod
	peers    map[string][]ref // namespace → pods with believable addresses
	policies map[string][]*networkingv1.NetworkPolicy
	proxies  map[int]map[string]bool // family → addresses of ingress proxies
}

func index(s State) *cluster {
	c := &cluster{
		labels: map[string]map[string]string{}, pods: map[podKey]*corev1.Pod{}, peers: map[string][]ref{},
		policies: map[string][]*networkingv1.NetworkPolicy{}, proxies: proxies(s),
	}
	for _, ns := range s.Namespaces {
		c.labels[ns.Name] = ns.Labels
	}
	for _, p := range s.Policies {
		c.policies[p.Namespace] = append(c.policies[p.Namespace], p)
	}
	for _, all := range c.policies {
		slices.SortFunc(all, func(a, b *networkingv1.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	}
	own := map[podKey][]Sandbox{}
	for _, b := range s.Sandboxes {
		k := podKey{b.Namespace, b.Name}
		own[k] = append(own[k], b)
	}
	cidrs := podCIDRs(s.Node, s.Nodes)
	claims := map[netip.Addr]addressUse{}
	var there []ref
	for _, p := range s.Pods {
		k := podKey{p.Namespace, p.Name}
		c.pods[k] = p
		if p.Spec.HostNetwork || hasEnded(p) {
			continue
		}
		if p.Spec.NodeName == s.Node {
			var ips []netip.Addr
			for _, b := range own[k] {
				if sameUID(b, p) {
					ips = append(ips, b.IPs...)
				}
			}
			c.add(ref{p, ips})
			continue
		}
		r := ref{p, statusAddresses(p, cidrs[p.Spec.NodeName])}
		there = append(there, r)
		for _, ip := range r.ips {
			claims[ip] = claims[ip].withPod(p)
		}
	}
	for _, r := range there {
		r.ips = slices.DeleteFunc(r.ips, func(ip netip.Addr) bool {
			return !claims[ip].belongsTo(r.pod) || c.proxies[familyOf(ip)][ip.String()]
		})
		c.add(r)
	}
	return c
}

func (c *cluster) add(r ref) {
	if len(r.ips) > 0 {
		c.peers[r.pod.Namespace] = append(c.peers[r.pod.Namespace], r)
	}
}

// addressUse counts the pods that have an address by their status: those that stay, and those that are being deleted,
// whose address may already have a new owner. A status may also be out of date, when the pod's network was made again
// since. If the owner of an address cannot be known, the address counts as unused.
type addressUse struct{ staying, going int }

func (c addressUse) withPod(p *corev1.Pod) addressUse {
	if p.DeletionTimestamp == nil {
		c.staying++
	} else {
		c.going++
	}
	return c
}

func (c addressUse) belongsTo(p *corev1.Pod) bool {
	if p.DeletionTimestamp == nil {
		return c.staying == 1
	}
	return c.staying == 0 && c.going == 1
}

// statusAddresses returns the addresses of a pod's status that its node can have assigned. Otherwise a client that may
// write a pod's status, such as a node, could make its traffic count as that of any pod.
func statusAddresses(p *corev1.Pod, cidrs []netip.Prefix) []netip.Addr {
	texts := append([]string{p.Status.PodIP}, convert.Slice(p.Status.PodIPs, func(ip corev1.PodIP) string { return ip.IP })...)
	var out []netip.Addr
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		ip = ip.Unmap().WithZone("")
		if !slices.Contains(out, ip) && slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(ip) }) {
			out = append(out, ip)
		}
	}
	return out
}

// network is one of a Node's pod CIDRs. Of two that overlap, the one with the lower rank is kept.
type network struct {
	cidr netip.Prefix
	node string
	rank int
}

// podCIDRs returns the pod networks of the nodes. Where two of them overlap, it leaves out one, as for the connections
// to nodes (cni/): this node's network is kept, and otherwise the older node's.
func podCIDRs(own string, nodes []*corev1.Node) map[string][]netip.Prefix {
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	var all []network
	for rank, n := range nodes {
		if n.Name == own {
			rank = -1
		}
		for _, c := range clusterconfig.PodCIDRs(n) {
			all = append(all, network{c.Masked(), n.Name, rank})
		}
	}
	slices.SortFunc(all, func(a, b network) int {
		return cmp.Or(a.cidr.Addr().Compare(b.cidr.Addr()), cmp.Compare(a.cidr.Bits(), b.cidr.Bits()), cmp.Compare(a.rank, b.rank))
	})
	out := map[string][]netip.Prefix{}
	lost := make([]bool, len(all))
	var around []int // those that contain all[i]
	for i, n := range all {
		around = slices.DeleteFunc(around, func(j int) bool { return !all[j].cidr.Overlaps(n.cidr) })
		for _, j := range around {
			switch {
			case all[j].rank > n.rank:
				lost[j] = true
			case all[j].rank < n.rank:
				lost[i] = true
			}
		}
		around = append(around, i)
	}
	for i, n := range all {
		if !lost[i] {
			out[n.node] = append(out[n.node], n.cidr)
		}
	}
	return out
}

func hasEnded(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// sameUID reports whether the sandbox belongs to that pod, and not to an earlier or later one of the same name. A
// static pod runs under a UID that its node chose, which its mirror pod in the API has in an annotation.
func sameUID(b Sandbox, p *corev1.Pod) bool {
	return b.UID == "" || b.UID == string(p.UID) || b.UID == p.Annotations[corev1.MirrorPodAnnotationKey]
}

// podOf returns the pod of a sandbox, or nil when the API is not known to have it.
func (c *cluster) podOf(b Sandbox) *corev1.Pod {
	if p := c.pods[podKey{b.Namespace, b.Name}]; p != nil && sameUID(b, p) && !hasEnded(p) {
		return p
	}
	return nil
}
