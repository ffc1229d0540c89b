// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// DefaultPool is the name of the flag's pool. An AddressPool of that name replaces it.
const DefaultPool = "default"

// Pool is a set of addresses for Services. No two pools have an address in common.
type Pool struct {
	Name   string
	Ranges []loadbalancer.Range
	// Auto pools are for Services that name no pool.
	Auto bool
	// AvoidBuggy excludes IPv4 addresses that end in .0 or .255.
	AvoidBuggy bool
	// Services and Namespaces select the Services that the pool is for. Nodes selects the nodes that announce its
	// addresses. nil is for all.
	Services, Namespaces, Nodes labels.Selector
}

func (p *Pool) hasFamily(f corev1.IPFamily) bool {
	return slices.ContainsFunc(p.Ranges, func(r loadbalancer.Range) bool { return isOfFamily(f, r.First) })
}

func (p *Pool) contains(a netip.Addr) bool {
	return !(p.AvoidBuggy && endsInZeroOr255(a)) && slices.ContainsFunc(p.Ranges, func(r loadbalancer.Range) bool { return r.Has(a) })
}

func endsInZeroOr255(a netip.Addr) bool {
	return a.Is4() && (a.As4()[3] == 0 || a.As4()[3] == 255)
}

// size returns how many addresses of the pool a Service that requests none may get. Of each range, at most maxRange
// count.
func (p *Pool) size() int {
	n := 0
	for _, r := range p.Ranges {
		size := r.Size(maxRange)
		n += size
		if p.AvoidBuggy && r.First.Is4() {
			bytes := r.First.As4()
			first := int(binary.BigEndian.Uint32(bytes[:]))
			end := first + size
			n -= (end+255)/256 - (first+255)/256 // those that end in .0
			n -= end/256 - first/256             // those that end in .255
		}
	}
	return n
}

func (p *Pool) selects() bool { return p.Services != nil || p.Namespaces != nil }

// poolOf returns the pool that contains an address, or nil.
func (s *State) poolOf(a netip.Addr) *Pool {
	for i := range s.Pools {
		if s.Pools[i].contains(a) {
			return &s.Pools[i]
		}
	}
	return nil
}

// isFor reports whether a Service may have addresses of a pool.
func (s *State) isFor(p *Pool, svc *corev1.Service) bool {
	return (p.Services == nil || p.Services.Matches(labels.Set(svc.Labels))) &&
		(p.Namespaces == nil || p.Namespaces.Matches(s.Namespaces[svc.Namespace]))
}

// auto returns the pools for a Service that names no pool.
func (s *State) auto(svc *corev1.Service) []*Pool {
	var out []*Pool
	for i := range s.Pools {
		if p := &s.Pools[i]; p.Auto && s.isFor(p, svc) {
			out = append(out, p)
		}
	}
	return out
}

// Flaw is a problem of an AddressPool. The zero Flaw is for none.
type Flaw struct{ Reason, Message string }

// Reasons of an AddressPool's condition.
const (
	// ReasonReady is the reason of a pool without a flaw.
	ReasonReady = "Ready"
	// ReasonBadAddresses says that some of spec.addresses cannot be addresses of Services.
	ReasonBadAddresses = "BadAddresses"
	// ReasonBadSelector says that a selector is invalid. The pool is for no Service then.
	ReasonBadSelector = "BadSelector"
	// ReasonOverlap says that another pool has some of the addresses.
	ReasonOverlap = "Overlap"
	// ReasonOutOfReach says that no node can announce some of the addresses.
	ReasonOutOfReach = "OutOfReach"
)

// Pools returns the pools of the flag and of objects, in the order in which they are searched for a Service: first
// those with a selector, then by name. An address in several belongs to the older pool, and the flag is older than all
// objects. Invalid addresses of an object are left out, so that a typing error removes no other address. flaws are
// these problems by the objects' names. networks are the cluster's own networks, in which no Service may have
// addresses.
func Pools(flag []loadbalancer.Range, objects []*addresspool.AddressPool, networks []netip.Prefix) (pools []Pool, flaws map[string]Flaw) {
	flaws = map[string]Flaw{}
	objects = slices.SortedFunc(slices.Values(objects), func(a, b *addresspool.AddressPool) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	if len(flag) > 0 && !slices.ContainsFunc(objects, func(o *addresspool.AddressPool) bool { return o.Name == DefaultPool }) {
		p := Pool{Name: DefaultPool, Auto: true}
		for _, r := range flag {
			p.Ranges = append(p.Ranges, rangesWithout(r, []Pool{p})...) // ranges of one pool may overlap, too
		}
		pools = append(pools, p)
	}
	for _, o := range objects {
		p, flaw := fromObject(o, pools, networks)
		pools = append(pools, p)
		if flaw.Reason != "" {
			flaws[o.Name] = flaw
		}
	}
	slices.SortFunc(pools, func(a, b Pool) int {
		if a.selects() != b.selects() {
			if a.selects() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return pools, flaws
}

// fromObject returns the pool of an object, without the addresses of older pools.
func fromObject(o *addresspool.AddressPool, older []Pool, networks []netip.Prefix) (Pool, Flaw) {
	p := Pool{Name: o.Name, Auto: o.Spec.AutoAssign == nil || *o.Spec.AutoAssign, AvoidBuggy: o.Spec.AvoidBuggyIPs}
	var bad, taken, selectors []string
	for _, text := range o.Spec.Addresses {
		r, err := loadbalancer.ParseRange(text)
		if err == nil {
			err = checkRange(r, networks)
		}
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		for _, other := range older {
			if slices.ContainsFunc(other.Ranges, func(q loadbalancer.Range) bool { return len(r.Minus(q)) != 1 || r.Minus(q)[0] != r }) {
				taken = append(taken, fmt.Sprintf("%s: the pool %s has some of these, and keeps them", text, other.Name))
			}
		}
		p.Ranges = append(p.Ranges, rangesWithout(r, append(slices.Clone(older), p))...)
	}
	for _, of := range []struct {
		name string
		from *metav1.LabelSelector
		to   *labels.Selector
	}{
		{"serviceSelector", o.Spec.ServiceSelector, &p.Services}, {"namespaceSelector", o.Spec.NamespaceSelector, &p.Namespaces},
		{"nodeSelector", o.Spec.NodeSelector, &p.Nodes},
	} {
		if of.from == nil {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(of.from)
		if err != nil {
			selector = labels.Nothing()
			selectors = append(selectors, fmt.Sprintf("%s: %v; it selects nothing", of.name, err))
		}
		*of.to = selector
	}
	switch {
	case len(selectors) > 0:
		return p, Flaw{ReasonBadSelector, strings.Join(selectors, "; ")}
	case len(bad) > 0:
		return p, Flaw{ReasonBadAddresses, strings.Join(bad, "; ") + ". The other addresses are given out"}
	case len(taken) > 0:
		return p, Flaw{ReasonOverlap, strings.Join(taken, "; ")}
	}
	return p, Flaw{}
}

// checkRange returns an error for addresses that Services cannot have.
func checkRange(r loadbalancer.Range, networks []netip.Prefix) error {
	for _, a := range []netip.Addr{r.First, r.Last} {
		if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("%s: %s is no address that a machine of a network can have", r, a)
		}
	}
	for _, n := range networks {
		if r.Overlaps(n) {
			return fmt.Errorf("%s lies in %s, the cluster's own network for pods or Services; addresses of the nodes' network are wanted",
				r, n)
		}
	}
	return nil
}

// rangesWithout returns the rest of a range without the addresses of pools.
func rangesWithout(r loadbalancer.Range, pools []Pool) []loadbalancer.Range {
	left := []loadbalancer.Range{r}
	for _, p := range pools {
		for _, taken := range p.Ranges {
			var next []loadbalancer.Range
			for _, l := range left {
				next = append(next, l.Minus(taken)...)
			}
			left = next
		}
	}
	return left
}

func poolValues(pools []*Pool) []Pool {
	out := make([]Pool, len(pools))
	for i, p := range pools {
		out[i] = *p
	}
	return out
}

// shownRanges limits the ranges in a message.
const shownRanges = 4

func poolsText(pools []Pool) string {
	if len(pools) == 0 {
		return "none"
	}
	words := make([]string, len(pools))
	for i, p := range pools {
		ranges := clusterconfig.Strings(p.Ranges)
		if len(ranges) > shownRanges {
			ranges = append(ranges[:shownRanges], "…")
		}
		words[i] = fmt.Sprintf("the pool %s with %s", p.Name, strings.Join(ranges, ","))
	}
	return strings.Join(words, ", ")
}
