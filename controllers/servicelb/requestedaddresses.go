// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/convert"
)

const (
	// PoolAnnotation on a Service names the pool of its addresses.
	PoolAnnotation = "coracle.dev/load-balancer-pool"
	// AddressesAnnotation lists the requested addresses, separated by commas. spec.loadBalancerIP names one.
	AddressesAnnotation = "coracle.dev/load-balancer-ips"
	// ShareAnnotation is a key. Services of one namespace with the same key may share an address, if their ports
	// differ.
	ShareAnnotation = "coracle.dev/load-balancer-share"
	// NodesAnnotation, with the value "true", gives a Service nodes' addresses although there is a pool.
	NodesAnnotation = "coracle.dev/load-balancer-nodes"
)

// metalLB are MetalLB's names of the same annotations, which many charts contain: the current and the former name.
var metalLB = map[string][]string{
	PoolAnnotation:      {"metallb.io/address-pool", "metallb.universe.tf/address-pool"},
	AddressesAnnotation: {"metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"},
	ShareAnnotation:     {"metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"},
}

func annotationOf(svc *corev1.Service, annotation string) string {
	for _, name := range append([]string{annotation}, metalLB[annotation]...) {
		if v := strings.TrimSpace(svc.Annotations[name]); v != "" {
			return v
		}
	}
	return ""
}

func requestedAddresses(svc *corev1.Service) []netip.Addr {
	if text := annotationOf(svc, AddressesAnnotation); text != "" {
		words := strings.Split(text, ",")
		for i := range words {
			words[i] = strings.TrimSpace(words[i])
		}
		return parseAll(words)
	}
	return parseAll([]string{svc.Spec.LoadBalancerIP})
}

func parseAll(texts []string) []netip.Addr {
	return convert.Valid(texts, netip.ParseAddr)
}

// hasFamily reports whether an address is of one of a Service's families.
func hasFamily(svc *corev1.Service, a netip.Addr) bool {
	return slices.ContainsFunc(svc.Spec.IPFamilies, func(f corev1.IPFamily) bool { return isOfFamily(f, a) })
}

func isOfFamily(f corev1.IPFamily, a netip.Addr) bool { return a.Is4() == (f == corev1.IPv4Protocol) }

func statusAddresses(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, in := range svc.Status.LoadBalancer.Ingress {
		out = append(out, parseAll([]string{in.IP})...)
	}
	return out
}
