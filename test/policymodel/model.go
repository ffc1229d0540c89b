// SPDX-License-Identifier: Apache-2.0

// Package policymodel says what NetworkPolicies mean, for tests: which connections they allow, pods to try that with,
// and policies, some listed and some by chance. It knows nothing of how policies are enforced, nor of the cluster's
// DNS.
package policymodel

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"
)

// Model is what the documentation of NetworkPolicies says, word by word and without a thought of speed.
type Model struct {
	// Namespaces are the labels of each, its name among them.
	Namespaces map[string]map[string]string
	Policies   []*networkingv1.NetworkPolicy
	// Pods are those that have each address.
	Pods map[netip.Addr]*corev1.Pod
}

// Connection is one that a pod, or an outside client, opens to another.
type Connection struct {
	From, To netip.Addr
	Proto    corev1.Protocol
	Port     int32
}

// Allowed says whether the policies of both ends admit a connection. here says whose policies count; nil: everybody's.
func (m Model) Allowed(c Connection, here func(netip.Addr) bool) bool {
	if here == nil {
		here = func(netip.Addr) bool { return true }
	}
	if c.From == c.To {
		return true // a pod cannot block access to itself
	}
	if from := m.Pods[c.From]; from != nil && here(c.From) && !m.direction(from, c, networkingv1.PolicyTypeEgress) {
		return false
	}
	if to := m.Pods[c.To]; to != nil && here(c.To) && !m.direction(to, c, networkingv1.PolicyTypeIngress) {
		return false
	}
	return true
}

func (m Model) direction(pod *corev1.Pod, c Connection, d networkingv1.PolicyType) bool {
	isolated := false
	for _, p := range m.Policies {
		if p.Namespace != pod.Namespace || !slices.Contains(p.Spec.PolicyTypes, d) || !matches(&p.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if d == networkingv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				if m.peers(p.Namespace, r.From, c.From) && m.ports(r.Ports, c) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			if m.peers(p.Namespace, r.To, c.To) && m.ports(r.Ports, c) {
				return true
			}
		}
	}
	return !isolated
}

func (m Model) peers(namespace string, peers []networkingv1.NetworkPolicyPeer, other netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, p := range peers {
		if p.IPBlock != nil {
			if contains(p.IPBlock.CIDR, other) && !slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return contains(e, other) }) {
				return true
			}
			continue
		}
		pod := m.Pods[other]
		if pod == nil || pod.Spec.HostNetwork {
			continue
		}
		in := pod.Namespace == namespace
		if p.NamespaceSelector != nil {
			in = matches(p.NamespaceSelector, m.Namespaces[pod.Namespace])
		}
		if in && (p.PodSelector == nil || matches(p.PodSelector, pod.Labels)) {
			return true
		}
	}
	return false
}

// contains reads a CIDR as the API does when it looks whether exceptions are in their block.
func contains(cidr string, ip netip.Addr) bool {
	_, n, err := netutils.ParseCIDRSloppy(cidr)
	return err == nil && n.Contains(ip.AsSlice())
}

func (m Model) ports(all []networkingv1.NetworkPolicyPort, c Connection) bool {
	if len(all) == 0 {
		return true
	}
	for _, p := range all {
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if proto != c.Proto {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.Int && p.EndPort == nil && p.Port.IntVal == c.Port:
			return true
		case p.Port.Type == intstr.Int && p.EndPort != nil && p.Port.IntVal <= c.Port && c.Port <= *p.EndPort:
			return true
		case p.Port.Type == intstr.String && m.Pods[c.To] != nil:
			for _, container := range m.Pods[c.To].Spec.Containers {
				for _, its := range container.Ports {
					if its.Name == p.Port.StrVal && its.Protocol == proto && its.ContainerPort == c.Port {
						return true
					}
				}
			}
		}
	}
	return false
}

func matches(s *metav1.LabelSelector, its map[string]string) bool {
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
