// SPDX-License-Identifier: Apache-2.0

// This file defines the text form of the addresses of a load balancer's pool.

package loadbalancer

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// Range is a range of addresses of a pool, both ends included.
type Range struct{ First, Last netip.Addr }

// ParseRange parses FIRST-LAST, a network in CIDR notation, or one address. It omits the first and the last address of
// an IPv4 network, unless the network is a /31 or /32.
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
		return Range{}, fmt.Errorf("%q is neither an address, nor a range such as 192.168.1.240-192.168.1.250, nor a network such as "+
			"192.168.1.240/28", text)
	}
	r := Range{p.Masked().Addr(), clusterconfig.LastAddress(p)}
	if p.Addr().Is4() && p.Bits() < 31 {
		r = Range{r.First.Next(), r.Last.Prev()}
	}
	return r, nil
}

// Has says whether the range contains an address.
func (r Range) Has(a netip.Addr) bool {
	return r.First.Is4() == a.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps says whether the range and a network have an address in common.
func (r Range) Overlaps(p netip.Prefix) bool {
	return p.Contains(r.First) || p.Contains(r.Last) || r.Has(p.Masked().Addr())
}

// Minus returns the range without the addresses of another one.
func (r Range) Minus(other Range) []Range {
	if r.First.Is4() != other.First.Is4() || other.Last.Less(r.First) || r.Last.Less(other.First) {
		return []Range{r}
	}
	var out []Range
	if r.First.Less(other.First) {
		out = append(out, Range{r.First, other.First.Prev()})
	}
	if other.Last.Less(r.Last) {
		out = append(out, Range{other.Last.Next(), r.Last})
	}
	return out
}

// Size returns the number of addresses in the range, or limit if there are more.
func (r Range) Size(limit int) int {
	a, b := r.First.As16(), r.Last.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(a[8:]), 0)
	high, _ := bits.Sub64(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(a[:8]), borrow)
	if high > 0 || low >= uint64(limit) {
		return limit
	}
	return int(low) + 1
}

// String returns the range in a form that ParseRange parses.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Parse parses ranges.
func Parse(texts []string) ([]Range, error) {
	var out []Range
	for _, t := range texts {
		r, err := ParseRange(t)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
