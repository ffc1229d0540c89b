// SPDX-License-Identifier: Apache-2.0

package policymodel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Generator writes policies for the dozen by chance.
type Generator struct {
	Rand *rand.Rand
	// Networks are addresses that blocks begin with, of networks and of single machines; Near those that are likely to
	// be an exception.
	Networks, Near []netip.Addr
	// Wrapped has some IPv4 networks written as IPv6 wraps them, which the API took from everybody once, and takes no
	// more.
	Wrapped bool
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// Policy makes one, in one of the namespaces.
func (g Generator) Policy(name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g.Rand, "x", "y", "z"), Name: name}}
	p.Spec.PodSelector = g.selector("app", "a", "b", "c")
	for range g.Rand.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(), Ports: g.ports()})
	}
	for range g.Rand.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(), Ports: g.ports()})
	}
	p.Spec.PolicyTypes = pick(g.Rand, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	return p
}

func (g Generator) selector(key string, values ...string) metav1.LabelSelector {
	switch g.Rand.IntN(5) {
	case 0:
		return metav1.LabelSelector{}
	case 1, 2:
		return metav1.LabelSelector{MatchLabels: map[string]string{key: pick(g.Rand, values...)}}
	case 3:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: key, Operator: pick(g.Rand, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{pick(g.Rand, values...), pick(g.Rand, values...)},
		}}}
	}
	return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
		Key: pick(g.Rand, key, "tier"), Operator: pick(g.Rand, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist),
	}}}
}

func (g Generator) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range g.Rand.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		pods, namespaces := g.selector("app", "a", "b", "c"), g.selector("team", "x", "y", "z")
		switch g.Rand.IntN(4) {
		case 0:
			p.PodSelector = &pods
		case 1:
			p.NamespaceSelector = &namespaces
		case 2:
			p.PodSelector, p.NamespaceSelector = &pods, &namespaces
		case 3:
			p.IPBlock = g.block()
		}
		out = append(out, p)
	}
	return out
}

// block has its exceptions inside, as the API wants it: beside and inside of one another, and in every way to write
// them.
func (g Generator) block() *networkingv1.IPBlock {
	base := pick(g.Rand, g.Networks...)
	cidr := netip.PrefixFrom(base, base.BitLen()-pick(g.Rand, 0, 1, 2, 3, 4, 5, 8, 16, base.BitLen()-8, base.BitLen())).Masked()
	out := &networkingv1.IPBlock{CIDR: g.spell(cidr)}
	for range g.Rand.IntN(4) {
		within := cidr.Addr().AsSlice()
		if near := pick(g.Rand, g.Near...); cidr.Contains(near) && g.Rand.IntN(3) > 0 {
			within = near.AsSlice()
		} else {
			for bit := cidr.Bits(); bit < len(within)*8; bit++ {
				within[bit/8] |= byte(g.Rand.IntN(2)) << (7 - bit%8)
			}
		}
		if a, _ := netip.AddrFromSlice(within); cidr.Bits() < a.BitLen() {
			out.Except = append(out.Except, g.spell(netip.PrefixFrom(a, cidr.Bits()+1+g.Rand.IntN(a.BitLen()-cidr.Bits())).Masked()))
		}
	}
	return out
}

// spell writes an IPv4 network also as IPv6 wraps it, where that is wanted.
func (g Generator) spell(p netip.Prefix) string {
	if g.Wrapped && p.Addr().Is4() && p.Bits() > 0 && g.Rand.IntN(5) == 0 {
		return fmt.Sprintf("::ffff:%s/%d", p.Addr(), p.Bits()+96)
	}
	return p.String()
}

func (g Generator) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range g.Rand.IntN(3) {
		proto := pick(g.Rand, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch g.Rand.IntN(5) {
		case 0:
		case 1:
			port := intstr.FromString(pick(g.Rand, "web", "names", "none"))
			p.Port = &port
		case 2:
			port, end := intstr.FromInt32(pick[int32](g.Rand, 80, 81, 8080)), pick[int32](g.Rand, 8080, 9000, 65535)
			p.Port, p.EndPort = &port, &end
		default:
			port := intstr.FromInt32(pick[int32](g.Rand, 53, 80, 81, 8080))
			p.Port = &port
		}
		if g.Rand.IntN(4) == 0 {
			p.Protocol = nil
		}
		out = append(out, p)
	}
	return out
}
