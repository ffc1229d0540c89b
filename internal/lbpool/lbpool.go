// SPDX-License-Identifier: Apache-2.0

// Package lbpool is how the addresses of a load balancer's pool are written.
package lbpool

import (
	"fmt"
	"net/netip"
	"strings"
)

// Range is addresses of a pool, both ends included.
type Range struct{ First, Last netip.Addr }

// ParseRange reads FIRST-LAST, a network in CIDR notation, or one address. Of an IPv4 network the first and last address are left out.
func ParseRange(text string) (Range, error) {
	if first, last, ok := strings.Cut(text, "-"); ok {
		a, errA := netip.ParseAddr(strings.TrimSpace(first))
		b, errB := netip.ParseAddr(strings.TrimSpace(last))
		if errA != nil || errB != nil || a.Is4() != b.Is4() || b.Less(a) {
			return Range{}, fmt.Errorf("%q is no range of addresses such as 192.168.1.240-192.168.1.250", text)
		}
		return Range{a, b}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return Range{a, a}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return Range{}, fmt.Errorf("%q is neither an address, nor a range such as 192.168.1.240-192.168.1.250, nor a network such as 192.168.1.240/28", text)
	}
	r := Range{p.Masked().Addr(), lastOf(p)}
	if p.Addr().Is4() && p.Bits() < 31 {
		r = Range{r.First.Next(), r.Last.Prev()}
	}
	return r, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 1 << (7 - i%8)
	}
	out, _ := netip.AddrFromSlice(bytes)
	return out
}

// Has says whether an address is one of them.
func (r Range) Has(a netip.Addr) bool {
	return r.First.Is4() == a.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps says whether a network has one of them.
func (r Range) Overlaps(p netip.Prefix) bool {
	return p.Contains(r.First) || p.Contains(r.Last) || r.Has(p.Masked().Addr())
}
