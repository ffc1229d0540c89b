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
	// ReasonPoolUsedUp says that no pool for the Service has an address left.
	ReasonPoolUsedUp = "PoolUsedUp"
	// ReasonNoPool says that the pool which the Service names does not exist, or that its selectors exclude the
	// Service.
	ReasonNoPool = "NoPool"
	// ReasonAddressNotFree says that the Service requests an address that it cannot have.
	ReasonAddressNotFree = "AddressNotFree"
	// ReasonAddressInUse says that a machine outside of the cluster uses the Service's address.
	ReasonAddressInUse = "AddressInUse"
)

// fromPool reports whether a Service's addresses come from a pool: the Service requests that, or has such an address
// already, or there is a pool for it that need not be requested.
func (l *ledger) fromPool(svc *corev1.Service) bool {
	if svc.Annotations[NodesAnnotation] == "true" {
		return false
	}
	isFor := func(a netip.Addr) bool {
		p := l.poolOf(a)
		return p != nil && l.isFor(p, svc) && !slices.Contains(l.barred, a)
	}
	return annotationOf(svc, PoolAnnotation) != "" || slices.ContainsFunc(requestedAddresses(svc), isFor) ||
		slices.ContainsFunc(statusAddresses(svc), isFor) ||
		slices.ContainsFunc(l.auto(svc), func(p *Pool) bool { return slices.ContainsFunc(svc.Spec.IPFamilies, p.hasFamily) })
}

// retainCurrent allocates to a Service the addresses that it has already, except those that it may not keep.
func (l *ledger) retainCurrent(svc *corev1.Service) {
	want := requestedAddresses(svc)
	for _, a := range statusAddresses(svc) {
		switch {
		case !hasFamily(svc, a), len(want) > 0 && !slices.Contains(want, a), l.denial(svc, a) != "":
		case slices.ContainsFunc(l.assigned(svc), func(b netip.Addr) bool { return a.Is4() == b.Is4() }):
		default:
			l.assign(a, svc)
		}
	}
}

// allocate allocates the addresses that a Service lacks.
func (l *ledger) allocate(svc *corev1.Service) Allocation {
	v := Allocation{Ours: true, Pool: true, Reason: ReasonServed}
	pools, why := l.choices(svc)
	if why != "" {
		v.Reason, v.Message = ReasonNoPool, why
		return v
	}
	var lacking []string
	for _, f := range svc.Spec.IPFamilies {
		ofFamily := func(a netip.Addr) bool { return isOfFamily(f, a) }
		if slices.ContainsFunc(l.assigned(svc), ofFamily) {
			continue
		}
		reason, why := l.allocateMissing(svc, f, pools)
		if why != "" {
			v.Reason, lacking = reason, append(lacking, why)
		}
	}
	v.Addresses = ofFamilies(l.assigned(svc), svc)
	switch {
	case len(lacking) > 0:
		v.Message = strings.Join(lacking, "; ")
	case len(v.Addresses) == 0:
		v.Reason, v.Message = ReasonAddressNotFree, "what it asks for has no address of its families"
	default:
		v.Message = "it has an address of the pool " + l.poolOf(v.Addresses[0]).Name
	}
	return v
}

// inUse sets the reason and the message of a Service with all its addresses if another machine uses one of them.
func (v *Allocation) inUse(used map[netip.Addr]string) {
	var words []string
	for _, a := range v.Addresses {
		if by, ok := used[a]; ok {
			words = append(words, fmt.Sprintf("another machine on the network, with the Ethernet address %s, uses %s, so that clients "+
				"may not reach the Service. Take it off that machine, "+
				"or give the Service another address (%s)", by, a, AddressesAnnotation))
		}
	}
	if v.Pool && v.Reason == ReasonServed && len(words) > 0 {
		v.Reason, v.Message = ReasonAddressInUse, strings.Join(words, "; ")
	}
}

// allocateMissing allocates an address of a family to a Service that has none. If there is none for it, it returns the
// reason.
func (l *ledger) allocateMissing(svc *corev1.Service, f corev1.IPFamily, pools []*Pool) (reason, why string) {
	asked := slices.DeleteFunc(requestedAddresses(svc), func(a netip.Addr) bool { return !isOfFamily(f, a) })
	switch {
	case len(asked) > 0:
		if why := l.denial(svc, asked[0]); why != "" {
			return ReasonAddressNotFree, why
		}
		if slices.Contains(l.Joined, asked[0]) && len(l.holders[asked[0]]) == 0 {
			return ReasonAddressNotFree, fmt.Sprintf("a machine joined with %s, and may come back; an hour after its Node was deleted "+
				"the address is free", asked[0])
		}
		l.assign(asked[0], svc)
	case len(requestedAddresses(svc)) > 0: // only the other family was requested
	case !slices.ContainsFunc(pools, func(p *Pool) bool { return p.hasFamily(f) }): // only the other family is available
	default:
		a := l.nextAddress(f, svc, pools)
		if !a.IsValid() {
			return ReasonPoolUsedUp, fmt.Sprintf("no %s address is left in %s: delete a Service, or add addresses (AddressPool, or "+
				"--load-balancer-pool)", f, poolsText(poolValues(pools)))
		}
		l.assign(a, svc)
	}
	return "", ""
}

// choices returns the pools from which a Service that requests no address gets one.
func (l *ledger) choices(svc *corev1.Service) (pools []*Pool, why string) {
	name := annotationOf(svc, PoolAnnotation)
	if name == "" {
		return l.auto(svc), ""
	}
	i := slices.IndexFunc(l.Pools, func(p Pool) bool { return p.Name == name })
	switch {
	case i < 0:
		return nil, fmt.Sprintf("it asks for the pool %s, and there is none of that name (there is: %s)", name, poolsText(l.Pools))
	case !l.isFor(&l.Pools[i], svc):
		return nil, fmt.Sprintf("it asks for the pool %s, whose selectors leave it out", name)
	}
	return []*Pool{&l.Pools[i]}, ""
}
