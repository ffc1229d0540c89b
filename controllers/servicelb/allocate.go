// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Reasons of the condition of a Service with addresses of a pool.
const (
	// ReasonPoolUsedUp says that the pool has no address left.
	ReasonPoolUsedUp = "PoolUsedUp"
	// ReasonAddressNotFree says that the Service asks for an address that it cannot have.
	ReasonAddressNotFree = "AddressNotFree"
)

func (s *State) newPool() *pool {
	p := &pool{ranges: s.Pool, barred: slices.Clone(s.Barred), named: map[netip.Addr]bool{}, holders: map[netip.Addr][]*corev1.Service{}}
	for _, n := range s.Nodes {
		p.barred = append(p.barred, addresses(n)...)
	}
	for _, svc := range s.Services {
		for _, a := range parseAll(svc.Spec.ExternalIPs) {
			p.named[a] = true
		}
	}
	return p
}

// fromPool says whether a Service's addresses come from the pool.
func (s *State) fromPool(svc *corev1.Service) bool {
	if svc.Annotations[NodesAnnotation] == "true" {
		return false
	}
	return slices.ContainsFunc(svc.Spec.IPFamilies, (&pool{ranges: s.Pool}).of)
}

// keep gives a Service what it has already, as far as it may keep it.
func (p *pool) keep(svc *corev1.Service) {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		want := wanted(svc)
		switch {
		case err != nil, !p.has(a), p.free(a, svc) != "", !slices.ContainsFunc(svc.Spec.IPFamilies, func(f corev1.IPFamily) bool { return a.Is4() == (f == corev1.IPv4Protocol) }):
		case len(want) > 0 && !slices.Contains(want, a):
		case slices.ContainsFunc(p.given(svc), func(b netip.Addr) bool { return a.Is4() == b.Is4() }):
		default:
			p.give(a, svc)
		}
	}
}

// given are the addresses that a Service has in this plan.
func (p *pool) given(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for a, holders := range p.holders {
		if slices.Contains(holders, svc) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// allocate gives a Service what it lacks.
func (p *pool) allocate(svc *corev1.Service) Verdict {
	v := Verdict{Ours: true, Pool: true}
	var lacking []string
	reason := ""
	for _, f := range svc.Spec.IPFamilies {
		ofFamily := func(a netip.Addr) bool { return a.Is4() == (f == corev1.IPv4Protocol) }
		if slices.ContainsFunc(p.given(svc), ofFamily) {
			continue
		}
		asked := slices.DeleteFunc(wanted(svc), func(a netip.Addr) bool { return !ofFamily(a) })
		switch {
		case len(asked) > 0 && !p.has(asked[0]):
			reason = ReasonAddressNotFree
			lacking = append(lacking, fmt.Sprintf("%s is not in the pool (%s), or a machine has it", asked[0], p.text()))
		case len(asked) > 0:
			if why := p.free(asked[0], svc); why != "" {
				reason = ReasonAddressNotFree
				lacking = append(lacking, why)
			} else {
				p.give(asked[0], svc)
			}
		case len(wanted(svc)) > 0 || !p.of(f): // the other family alone was asked for, or is there
		default:
			if a := p.next(f, svc); a.IsValid() {
				p.give(a, svc)
			} else {
				reason = ReasonPoolUsedUp
				lacking = append(lacking, fmt.Sprintf("the pool (%s) has no %s address left: delete a Service, or make the pool larger with --load-balancer-pool", p.text(), f))
			}
		}
	}
	v.Addresses = ofFamilies(p.given(svc), svc)
	switch {
	case len(lacking) > 0:
		v.Reason, v.Message = reason, strings.Join(lacking, "; ")
	case len(v.Addresses) == 0:
		v.Reason, v.Message = ReasonAddressNotFree, "it asks for an address of another family than its own"
	default:
		v.Reason, v.Message = ReasonServed, "it has an address of the pool"
	}
	return v
}

func (p *pool) text() string {
	words := make([]string, len(p.ranges))
	for i, r := range p.ranges {
		words[i] = r.First.String()
		if r.First != r.Last {
			words[i] += "-" + r.Last.String()
		}
	}
	return strings.Join(words, ",")
}
