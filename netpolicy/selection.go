// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// selection has the parsed selectors with which a peer of a policy selects pods.
type selection struct {
	namespace  string          // when namespaces is nil
	namespaces labels.Selector // or nil
	pods       labels.Selector
	cost       int // of one comparison, see costOf
}

// selectionOf parses a peer that is no ipBlock, in a policy of a namespace.
func selectionOf(namespace string, peer networkingv1.NetworkPolicyPeer) selection {
	s := selection{namespace: namespace, pods: labels.Everything(), cost: max(1, costOf(peer.NamespaceSelector)+costOf(peer.PodSelector))}
	if peer.NamespaceSelector != nil {
		s.namespace, s.namespaces = "", selector(peer.NamespaceSelector)
	}
	if peer.PodSelector != nil {
		s.pods = selector(peer.PodSelector)
	}
	return s
}

// costOf returns how many values a comparison with a selector may read. It does not parse the selector, since that
// costs much more (reading).
func costOf(s *metav1.LabelSelector) int {
	if s == nil {
		return 0
	}
	cost := len(s.MatchLabels)
	for _, e := range s.MatchExpressions {
		cost += 1 + len(e.Values)
	}
	return cost
}

// parseCost is how many times as much as one comparison it costs to parse a selector, since each of its values is
// checked.
const parseCost = 10

// selector parses a selector. One that the API should have rejected selects nothing.
func selector(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

// everyPod returns the selection of a rule without peers.
func everyPod() selection {
	return selection{namespaces: labels.Everything(), pods: labels.Everything(), cost: 1}
}

// key returns the same text for equal selections. The separators cannot be in a label.
func (s selection) key() string {
	words := "pods in " + s.namespace
	if s.namespaces != nil {
		words = "namespaces " + selectorKey(s.namespaces)
	}
	return words + ": " + selectorKey(s.pods)
}

func selectorKey(s labels.Selector) string {
	if _, selectable := s.Requirements(); !selectable {
		return "<none>"
	}
	return s.String()
}

func (s selection) matchesNamespace(name string, its map[string]string) bool {
	if s.namespaces == nil {
		return s.namespace == name
	}
	return its != nil && s.namespaces.Matches(labels.Set(its))
}

// matches reports whether the selection contains a pod with these labels in that namespace.
func (c *cluster) matches(s selection, namespace string, pod labels.Set) bool {
	return s.matchesNamespace(namespace, c.namespaceLabels(namespace)) && s.pods.Matches(pod)
}

func (c *cluster) namespaceLabels(name string) map[string]string {
	its, known := c.labels[name]
	if known && its == nil {
		its = map[string]string{}
	}
	return its
}

// selected returns the pods of a selection. work is the cost of the comparisons. When it exceeds most the remaining
// pods are left out.
func (c *cluster) selected(s selection, most int) (out []ref, work int) {
	add := func(namespace string) {
		all := s.pods.Empty()
		for _, r := range c.peers[namespace] {
			if work += s.cost; work > most {
				return
			}
			if all || s.pods.Matches(labels.Set(r.pod.Labels)) {
				out = append(out, r)
			}
		}
	}
	if s.namespaces == nil {
		add(s.namespace)
		return out, work + 1
	}
	for namespace := range c.peers {
		if work += s.cost; work > most {
			break
		}
		if s.matchesNamespace(namespace, c.namespaceLabels(namespace)) {
			add(namespace)
		}
	}
	return out, work + 1
}

func protocol(p *corev1.Protocol) string {
	if p == nil {
		return "tcp"
	}
	return protocolName(*p)
}

func protocolName(p corev1.Protocol) string {
	switch p {
	case "", corev1.ProtocolTCP:
		return "tcp"
	case corev1.ProtocolUDP:
		return "udp"
	case corev1.ProtocolSCTP:
		return "sctp"
	}
	return ""
}

// numericPorts returns the ports of a policy's numeric port. It returns false when the API should have rejected them.
func numericPorts(p networkingv1.NetworkPolicyPort) (portSpan, bool) {
	first := p.Port.IntVal
	last := first
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 0 || last > 65535 || last < first {
		return portSpan{}, false
	}
	return portSpan{uint16(first), uint16(last)}, true
}

// portNumbers returns the numbers of a pod's ports with that name, each once.
func portNumbers(p *corev1.Pod, proto, name string) []string {
	var out []string
	for _, all := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range all {
			for _, port := range c.Ports {
				if number := strconv.Itoa(int(port.ContainerPort)); port.Name == name && protocolName(port.Protocol) == proto &&
					!slices.Contains(out, number) {
					out = append(out, number)
				}
			}
		}
	}
	return out
}

func portElement(a netip.AddrPort) string {
	return a.Addr().String() + " . " + strconv.Itoa(int(a.Port()))
}
