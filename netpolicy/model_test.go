// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"
)

// model is what the documentation of NetworkPolicies says, word by word and without a thought of speed. It knows who has
// which address, and of what the cluster's DNS is nothing.
type model struct {
	namespaces map[string]map[string]string
	policies   []*networkingv1.NetworkPolicy
	pods       map[netip.Addr]*corev1.Pod
}

// connection is one that a pod, or somebody else, opens to another.
type connection struct {
	from, to netip.Addr
	proto    corev1.Protocol
	port     int32
}

// allowed says whether the policies of both ends admit a connection. here says whose policies count.
func (m model) allowed(c connection, here func(netip.Addr) bool) bool {
	if c.from == c.to {
		return true // a pod cannot block access to itself
	}
	if from := m.pods[c.from]; from != nil && here(c.from) && !m.direction(from, c, networkingv1.PolicyTypeEgress) {
		return false
	}
	if to := m.pods[c.to]; to != nil && here(c.to) && !m.direction(to, c, networkingv1.PolicyTypeIngress) {
		return false
	}
	return true
}

func (m model) direction(pod *corev1.Pod, c connection, d networkingv1.PolicyType) bool {
	isolated := false
	for _, p := range m.policies {
		if p.Namespace != pod.Namespace || !slices.Contains(p.Spec.PolicyTypes, d) || !modelMatches(&p.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if d == networkingv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				if m.peers(p.Namespace, r.From, c.from) && m.ports(r.Ports, c) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			if m.peers(p.Namespace, r.To, c.to) && m.ports(r.Ports, c) {
				return true
			}
		}
	}
	return !isolated
}

func (m model) peers(namespace string, peers []networkingv1.NetworkPolicyPeer, other netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, p := range peers {
		if p.IPBlock != nil {
			if modelContains(p.IPBlock.CIDR, other) && !slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return modelContains(e, other) }) {
				return true
			}
			continue
		}
		pod := m.pods[other]
		if pod == nil || pod.Spec.HostNetwork {
			continue
		}
		in := pod.Namespace == namespace
		if p.NamespaceSelector != nil {
			in = modelMatches(p.NamespaceSelector, m.namespaces[pod.Namespace])
		}
		if in && (p.PodSelector == nil || modelMatches(p.PodSelector, pod.Labels)) {
			return true
		}
	}
	return false
}

// modelContains reads a CIDR as the API does when it looks whether exceptions are in their block.
func modelContains(cidr string, ip netip.Addr) bool {
	_, n, err := netutils.ParseCIDRSloppy(cidr)
	return err == nil && n.Contains(ip.AsSlice())
}

func (m model) ports(all []networkingv1.NetworkPolicyPort, c connection) bool {
	if len(all) == 0 {
		return true
	}
	for _, p := range all {
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if proto != c.proto {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.Int && p.EndPort == nil && p.Port.IntVal == c.port:
			return true
		case p.Port.Type == intstr.Int && p.EndPort != nil && p.Port.IntVal <= c.port && c.port <= *p.EndPort:
			return true
		case p.Port.Type == intstr.String && m.pods[c.to] != nil:
			for _, container := range m.pods[c.to].Spec.Containers {
				for _, its := range container.Ports {
					if its.Name == p.Port.StrVal && its.Protocol == proto && its.ContainerPort == c.port {
						return true
					}
				}
			}
		}
	}
	return false
}

func modelMatches(s *metav1.LabelSelector, its map[string]string) bool {
	for k, v := range s.MatchLabels {
		if its[k] != v {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		v, has := its[r.Key]
		ok := false
		switch r.Operator {
		case metav1.LabelSelectorOpIn:
			ok = has && slices.Contains(r.Values, v)
		case metav1.LabelSelectorOpNotIn:
			ok = !has || !slices.Contains(r.Values, v)
		case metav1.LabelSelectorOpExists:
			ok = has
		case metav1.LabelSelectorOpDoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}

// allows is what the kernel does with a ruleset.
func (r *Ruleset) allows(c connection) bool {
	if c.from == c.to {
		return true
	}
	if name, ok := r.Pods[egress][c.from]; ok && !r.chainAllows(name, c.to, c) {
		return false
	}
	if name, ok := r.Pods[ingress][c.to]; ok && !r.chainAllows(name, c.from, c) {
		return false
	}
	return true
}

func (r *Ruleset) chainAllows(name string, other netip.Addr, c connection) bool {
	chain, ok := r.Chains[name]
	if !ok {
		panic("a pod has a chain that is not there: " + name)
	}
	return slices.ContainsFunc(chain.rules, func(rule Rule) bool {
		if rule.Proto != "" && rule.Proto != protocolName(c.proto) {
			return false
		}
		if rule.Ports != "" && !r.portIn(rule.Ports, c.port) {
			return false
		}
		if rule.Peers == "" {
			return true
		}
		set := r.Sets[rule.Peers]
		if rule.Family != familyOf(other) {
			return false
		}
		if rule.DNS {
			return set.Elems[pair(netip.AddrPortFrom(other, uint16(c.port)))]
		}
		return setHas(set, other)
	})
}

func (r *Ruleset) portIn(words string, port int32) bool {
	spans := map[string]bool{words: true}
	if words[0] == '@' {
		spans = r.Sets[words[1:]].Elems
	}
	for s := range spans {
		first, last := cutNumbers(s)
		if first <= port && port <= last {
			return true
		}
	}
	return false
}

func setHas(set Set, ip netip.Addr) bool {
	for text := range set.Elems {
		first, last := cutAddrs(text)
		if !ip.Less(first) && !last.Less(ip) {
			return true
		}
	}
	return false
}
