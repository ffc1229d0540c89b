// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// span is a range of addresses of one family, both ends included.
type span struct{ first, last netip.Addr }

func (s span) String() string {
	if s.first == s.last {
		return s.first.String()
	}
	return s.first.String() + "-" + s.last.String()
}

func spanOf(p netip.Prefix) span { return span{p.Masked().Addr(), clusterconfig.LastAddress(p)} }

// spansOf returns the addresses of an ipBlock: its CIDR without the exceptions, sorted and disjoint. The API rejects
// invalid CIDRs. An invalid CIDR as the block yields no addresses, and as an exception it excludes the whole block.
func spansOf(b *networkingv1.IPBlock) []span {
	cidr, ok := blockOf(b.CIDR)
	if !ok {
		return nil
	}
	var gone []span
	for _, text := range b.Except {
		except, ok := blockOf(text)
		if !ok || except.first.Is4() != cidr.first.Is4() {
			return nil
		}
		gone = append(gone, except)
	}
	return withoutSpans(cidr, union(gone))
}

// blockOf parses a CIDR as the API does: it accepts leading zeros, which old objects have, and IPv4-mapped IPv6.
func blockOf(text string) (span, bool) {
	_, n, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return span{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a.Is4In6() && bits == 128 && ones >= 96 {
		a, ones = a.Unmap(), ones-96
	}
	return spanOf(netip.PrefixFrom(a, ones)), ok
}

// withoutSpans removes spans from s. gone is sorted and disjoint.
func withoutSpans(s span, gone []span) []span {
	var out []span
	for _, e := range gone {
		if e.last.Less(s.first) || s.last.Less(e.first) {
			continue
		}
		if s.first.Less(e.first) {
			out = append(out, span{s.first, e.first.Prev()})
		}
		if !e.last.Less(s.last) {
			return out
		}
		s.first = e.last.Next()
	}
	return append(out, s)
}

// union sorts the spans and joins adjacent ones, as a set of intervals in the kernel requires.
func union(spans []span) []span {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return a.first.Compare(b.first) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].first.Is4() == s.first.Is4() {
			end := out[n-1].last.Next() // invalid after the last address of the family
			if !end.IsValid() || !end.Less(s.first) {
				if out[n-1].last.Less(s.last) {
					out[n-1].last = s.last
				}
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// contains reports whether the spans, which are sorted and disjoint, contain the address.
func contains(spans []span, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(spans, a, func(s span, a netip.Addr) int { return s.first.Compare(a) })
	if found {
		return true
	}
	return i > 0 && spans[i-1].first.Is4() == a.Is4() && !spans[i-1].last.Less(a)
}

// portSpan is a range of ports, both ends included.
type portSpan struct{ first, last uint16 }

// unionPorts sorts the spans and joins adjacent ones.
func unionPorts(spans []portSpan) []portSpan {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b portSpan) int { return int(a.first) - int(b.first) })
	var out []portSpan
	for _, s := range spans {
		if n := len(out); n > 0 && int(s.first) <= int(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}
