// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// State is all that the rules of one node follow from.
type State struct {
	// Node is this node's name.
	Node string
	// Sandboxes are the pods that have a network on this node, by the pod network's own record: their addresses are true,
	// whatever a pod's status says.
	Sandboxes []Sandbox
	// Pods of all nodes; those that have ended may be among them.
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	Policies   []*networkingv1.NetworkPolicy
	// Nodes are all nodes: a pod of another node is believed to have an address only inside that node's pod CIDRs.
	Nodes []*corev1.Node
	// DNS is where this node's pods reach the cluster's DNS, which is no pod; see dns.go.
	DNS DNS
}

// Sandbox is a pod's network on this node.
type Sandbox struct {
	ID                   string // of the attachment
	Namespace, Name, UID string // the pod's; UID is empty where the record does not say it
	IPs                  []netip.Addr
}

// podKey names a pod.
type podKey struct{ namespace, name string }

// ref is a pod that policies can speak of, with the addresses that it is believed to have.
type ref struct {
	pod *corev1.Pod
	ips []netip.Addr
}

// cluster is a State with the indexes that looking things up needs.
type cluster struct {
	labels   map[string]map[string]string // namespace → its labels
	pods     map[podKey]*corev1.Pod
	peers    map[string][]ref // namespace → pods with believable addresses
	policies map[string][]*networkingv1.NetworkPolicy
}

func index(s State) *cluster {
	c := &cluster{
		labels: map[string]map[string]string{}, pods: map[podKey]*corev1.Pod{}, peers: map[string][]ref{},
		policies: map[string][]*networkingv1.NetworkPolicy{},
	}
	for _, ns := range s.Namespaces {
		c.labels[ns.Name] = ns.Labels
	}
	for _, p := range s.Policies {
		c.policies[p.Namespace] = append(c.policies[p.Namespace], p)
	}
	for _, all := range c.policies {
		slices.SortFunc(all, func(a, b *networkingv1.NetworkPolicy) int { return cmpStrings(a.Name, b.Name) })
	}
	own := map[podKey][]Sandbox{}
	for _, b := range s.Sandboxes {
		k := podKey{b.Namespace, b.Name}
		own[k] = append(own[k], b)
	}
	cidrs := podCIDRs(s.Nodes)
	for _, p := range s.Pods {
		k := podKey{p.Namespace, p.Name}
		c.pods[k] = p
		if p.Spec.HostNetwork || ended(p) {
			continue
		}
		var ips []netip.Addr
		if p.Spec.NodeName == s.Node {
			for _, b := range own[k] {
				if sameUID(b, p) {
					ips = append(ips, b.IPs...)
				}
			}
		} else {
			ips = claimed(p, cidrs[p.Spec.NodeName])
		}
		if len(ips) > 0 {
			c.peers[p.Namespace] = append(c.peers[p.Namespace], ref{p, ips})
		}
	}
	return c
}

// claimed are the addresses of a pod's status that its node can have given it. Whoever may write a pod's status, a node
// among others, could otherwise have its traffic taken for that of any pod.
func claimed(p *corev1.Pod, cidrs []netip.Prefix) []netip.Addr {
	texts := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
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

func podCIDRs(nodes []*corev1.Node) map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, n := range nodes {
		for _, text := range n.Spec.PodCIDRs {
			if c, err := netip.ParsePrefix(text); err == nil {
				out[n.Name] = append(out[n.Name], c.Masked())
			}
		}
	}
	return out
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// sameUID says whether the sandbox is that pod's, and not one's of the same name before or after it. A static pod runs
// under a UID of its node's, which its mirror in the API carries in an annotation.
func sameUID(b Sandbox, p *corev1.Pod) bool {
	return b.UID == "" || b.UID == string(p.UID) || b.UID == p.Annotations[corev1.MirrorPodAnnotationKey]
}

// podOf is the pod of a sandbox, nil when the API is not known to have it.
func (c *cluster) podOf(b Sandbox) *corev1.Pod {
	if p := c.pods[podKey{b.Namespace, b.Name}]; p != nil && sameUID(b, p) && !ended(p) {
		return p
	}
	return nil
}

func cmpStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
