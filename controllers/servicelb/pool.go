// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/lbpool"
)

const (
	// AddressesAnnotation on a Service names the addresses that it wants, with commas in between; spec.loadBalancerIP names one.
	AddressesAnnotation = "coracle.dev/load-balancer-ips"
	// ShareAnnotation is a word: Services of a namespace that have the same may have one address, if their ports differ.
	ShareAnnotation = "coracle.dev/load-balancer-share"
	// NodesAnnotation, with the value "true", gives a Service addresses of nodes although there is a pool.
	NodesAnnotation = "coracle.dev/load-balancer-nodes"
)

// maxRange bounds what is looked through for a free address: an IPv6 network has more than anybody will give away.
const maxRange = 1 << 16

// pool is the load balancer's addresses while a plan is made.
type pool struct {
	ranges []lbpool.Range
	barred []netip.Addr // nodes' addresses, and other ones that have an owner
	// named are addresses that Services have among their external IPs. They are given out last, and when somebody asks for them: whoever may write Services in
	// one namespace must not keep addresses from others, or take them away. At such an address the proxies serve the load balancer.
	named   map[netip.Addr]bool
	holders map[netip.Addr][]*corev1.Service
}

func (p *pool) of(f corev1.IPFamily) bool {
	return slices.ContainsFunc(p.ranges, func(r lbpool.Range) bool { return r.First.Is4() == (f == corev1.IPv4Protocol) })
}

func (p *pool) has(a netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r lbpool.Range) bool { return r.Has(a) }) && !slices.Contains(p.barred, a)
}

// free says why a Service cannot have an address; empty if it can.
func (p *pool) free(a netip.Addr, svc *corev1.Service) (why string) {
	for _, other := range p.holders[a] {
		if w := mayShare(svc, other); w != "" {
			return fmt.Sprintf("%s belongs to the Service %s%s", a, key(other), w)
		}
	}
	return ""
}

// mayShare says what keeps two Services from having one address. With a policy of Local they need the same pods: the address is on one node.
func mayShare(a, b *corev1.Service) (why string) {
	word := a.Annotations[ShareAnnotation]
	if word == "" || word != b.Annotations[ShareAnnotation] || a.Namespace != b.Namespace {
		return ", and they have no common " + ShareAnnotation
	}
	for _, p := range a.Spec.Ports {
		for _, q := range b.Spec.Ports {
			if p.Port == q.Port && protocolOf(p.Protocol) == protocolOf(q.Protocol) {
				return fmt.Sprintf(", which has port %d/%s too", p.Port, protocolOf(p.Protocol))
			}
		}
	}
	if (local(a) || local(b)) && (local(a) != local(b) || fmt.Sprint(a.Spec.Selector) != fmt.Sprint(b.Spec.Selector)) {
		return ", which leads to other pods: with externalTrafficPolicy Local both need the same selector"
	}
	return ""
}

func (p *pool) give(a netip.Addr, svc *corev1.Service) { p.holders[a] = append(p.holders[a], svc) }

// next is the first address of a family that a Service can have; the zero one if there is none. A shared one comes first.
func (p *pool) next(f corev1.IPFamily, svc *corev1.Service) netip.Addr {
	var shared []netip.Addr
	for a := range p.holders {
		if svc.Annotations[ShareAnnotation] != "" && a.Is4() == (f == corev1.IPv4Protocol) && p.free(a, svc) == "" {
			shared = append(shared, a)
		}
	}
	if len(shared) > 0 {
		return slices.MinFunc(shared, netip.Addr.Compare)
	}
	var last netip.Addr
	for _, r := range p.ranges {
		if r.First.Is4() != (f == corev1.IPv4Protocol) {
			continue
		}
		for a, n := r.First, 0; r.Has(a) && n < maxRange; a, n = a.Next(), n+1 {
			switch {
			case !p.has(a) || len(p.holders[a]) > 0:
			case !p.named[a]:
				return a
			case !last.IsValid():
				last = a
			}
		}
	}
	return last
}

// wanted are the addresses that a Service asks for.
func wanted(svc *corev1.Service) []netip.Addr {
	if text := svc.Annotations[AddressesAnnotation]; text != "" {
		words := strings.Split(text, ",")
		for i := range words {
			words[i] = strings.TrimSpace(words[i])
		}
		return parseAll(words)
	}
	return parseAll([]string{svc.Spec.LoadBalancerIP})
}
