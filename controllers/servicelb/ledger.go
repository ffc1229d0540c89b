// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// maxRange limits how many addresses of a range are examined to find a free one. An IPv6 network has more than ever
// needed.
const maxRange = 1 << 16

// ledger records the allocations of pools' addresses while a plan is made.
type ledger struct {
	*State
	barred []netip.Addr // nodes' addresses, and others that have an owner
	// externalIPs are the addresses in the external IPs of Services. They are allocated last, or when a Service
	// requests them. So a user who may write Services in one namespace can neither block addresses nor take them from
	// others. At such an address the proxies serve the load balancer.
	externalIPs map[netip.Addr]bool
	holders     map[netip.Addr][]*corev1.Service
	addresses   map[*corev1.Service][]netip.Addr
	// releasing are addresses that a Service has only by its status, see releases.
	releasing map[netip.Addr]*corev1.Service
	// searches are the positions of the searches in the pools' ranges. Within one plan no Service releases an address,
	// so that an allocated one stays allocated.
	searches map[rangeOf]*search
}

// rangeOf identifies a range: its pool and its index there.
type rangeOf struct {
	pool *Pool
	i    int
}

// search is the position of the next search in a range. externalIPs are free addresses that the search skipped, because
// they are external IPs of Services.
type search struct {
	position    netip.Addr
	sweeps      int
	externalIPs []netip.Addr
}

func (s *State) newLedger() *ledger {
	l := &ledger{State: s, barred: slices.Clone(s.Barred), externalIPs: map[netip.Addr]bool{}, holders: map[netip.Addr][]*corev1.Service{},
		addresses: map[*corev1.Service][]netip.Addr{}, releasing: map[netip.Addr]*corev1.Service{}, searches: map[rangeOf]*search{}}
	for _, all := range s.trusted() {
		l.barred = append(l.barred, all...)
	}
	for _, svc := range s.Services {
		for _, a := range parseAll(svc.Spec.ExternalIPs) {
			l.externalIPs[a] = true
		}
	}
	return l
}

// denial returns the reason for which a Service cannot have an address; "" if it can.
func (l *ledger) denial(svc *corev1.Service, a netip.Addr) (why string) {
	p, name := l.poolOf(a), annotationOf(svc, PoolAnnotation)
	switch {
	case p == nil:
		return fmt.Sprintf("%s is in no pool (there is: %s)", a, poolsText(l.Pools))
	case name != "" && p.Name != name:
		return fmt.Sprintf("%s is not in the pool %s", a, name)
	case !l.isFor(p, svc):
		return fmt.Sprintf("%s is in the pool %s, whose selectors leave this Service out", a, p.Name)
	case slices.Contains(l.barred, a):
		return fmt.Sprintf("a machine has %s", a)
	}
	for _, other := range l.holders[a] {
		if why := mayShare(svc, other); why != "" {
			return fmt.Sprintf("%s belongs to the Service %s%s", a, serviceKey(other), why)
		}
	}
	if other := l.releasing[a]; other != nil && other != svc {
		return fmt.Sprintf("%s belongs to the Service %s%s", a, serviceKey(other), mayShare(svc, other))
	}
	return ""
}

// mayShare returns the reason for which two Services cannot share an address; "" if they can. With the policy Local
// they need the same pods, since the address is on one node.
func mayShare(a, b *corev1.Service) (why string) {
	word := annotationOf(a, ShareAnnotation)
	if word == "" || word != annotationOf(b, ShareAnnotation) || a.Namespace != b.Namespace {
		return ", and they have no common " + ShareAnnotation
	}
	for _, p := range a.Spec.Ports {
		for _, q := range b.Spec.Ports {
			if p.Port == q.Port && protocolOf(p.Protocol) == protocolOf(q.Protocol) {
				return fmt.Sprintf(", which has port %d/%s too", p.Port, protocolOf(p.Protocol))
			}
		}
	}
	if (isLocal(a) || isLocal(b)) && (isLocal(a) != isLocal(b) || fmt.Sprint(a.Spec.Selector) != fmt.Sprint(b.Spec.Selector)) {
		return ", which leads to other pods: with externalTrafficPolicy Local both need the same selector"
	}
	return ""
}

func (l *ledger) assign(a netip.Addr, svc *corev1.Service) {
	l.holders[a] = append(l.holders[a], svc)
	l.addresses[svc] = append(l.addresses[svc], a)
}

// assigned returns the addresses that a Service has in this plan.
func (l *ledger) assigned(svc *corev1.Service) []netip.Addr {
	return slices.Compact(slices.SortedFunc(slices.Values(l.addresses[svc]), netip.Addr.Compare))
}

// nextAddress returns the first address of a family in one of the pools that a Service can have. It returns the zero
// address if there is none. A shared address has precedence.
func (l *ledger) nextAddress(f corev1.IPFamily, svc *corev1.Service, pools []*Pool) netip.Addr {
	var shared []netip.Addr
	holders := l.holders
	if annotationOf(svc, ShareAnnotation) == "" {
		holders = nil
	}
	for a := range holders {
		if isOfFamily(f, a) && slices.Contains(pools, l.poolOf(a)) && l.denial(svc, a) == "" {
			shared = append(shared, a)
		}
	}
	if len(shared) > 0 {
		return slices.MinFunc(shared, netip.Addr.Compare)
	}
	var last netip.Addr
	for _, p := range pools {
		for i, r := range p.Ranges {
			if !isOfFamily(f, r.First) {
				continue
			}
			a, named := l.nextInRange(rangeOf{p, i})
			if a.IsValid() {
				return a
			}
			if !last.IsValid() {
				last = named
			}
		}
	}
	return last
}

// nextInRange returns the first address of a range that is neither used nor named, or else the first that is only
// named. It returns zero addresses where there is none. It examines each address once in a plan, however many Services
// need one.
func (l *ledger) nextInRange(r rangeOf) (free, named netip.Addr) {
	s, of := l.searches[r], r.pool.Ranges[r.i]
	if s == nil {
		s = &search{position: of.First}
		l.searches[r] = s
	}
	for ; of.Has(s.position) && s.sweeps < maxRange; s.position, s.sweeps = s.position.Next(), s.sweeps+1 {
		switch a := s.position; {
		case !r.pool.contains(a) || len(l.holders[a]) > 0 || l.releasing[a] != nil || slices.Contains(l.barred, a) ||
			slices.Contains(l.Joined, a):
		case !l.externalIPs[a]:
			return a, netip.Addr{} // the next search examines it again, since it may not be allocated
		default:
			s.externalIPs = append(s.externalIPs, a)
		}
	}
	for len(s.externalIPs) > 0 && len(l.holders[s.externalIPs[0]]) > 0 {
		s.externalIPs = s.externalIPs[1:]
	}
	if len(s.externalIPs) > 0 {
		named = s.externalIPs[0]
	}
	return netip.Addr{}, named
}
