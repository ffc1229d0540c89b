// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// intact reports whether the table has as many rules and elements as were written. It costs one request to the kernel
// as long as no program has changed any table of this host. It returns true if the kernel cannot be asked.
func (a *rulesApplier) intact() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	generation, err := nft.Generation()
	if err != nil || a.writtenRules == nil || generation == a.verifiedGeneration {
		return true
	}
	have, err := nft.Count(ownTable())
	if err != nil {
		return true
	}
	if !a.writtenRules.hasCounts(have) {
		return false
	}
	a.verifiedGeneration = generation
	return true
}

// hasCounts reports whether a table has as many of everything as the ruleset. Of a set of intervals it only checks that
// there are any: the kernel has one or two elements for each interval.
func (rs *ruleset) hasCounts(have nft.Counts) bool {
	rules, elements, intervals := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, o := range rs.objects {
		switch o := o.(type) {
		case *knftables.Chain:
			rules[o.Name] = 0
		case *knftables.Set:
			elements[o.Name], intervals[o.Name] = 0, slices.Contains(o.Flags, knftables.IntervalFlag)
			if n, ok := have.Elements[o.Name]; ok && slices.Contains(o.Flags, knftables.DynamicFlag) { // packets fill it
				elements[o.Name] = n
			}
		case *knftables.Map:
			elements[o.Name] = 0
		}
	}
	seen := map[string]bool{}
	for _, o := range rs.content {
		switch o := o.(type) {
		case *knftables.Rule:
			rules[o.Chain]++
		case *knftables.Element:
			if id := fmt.Sprint(o.Set, o.Map, o.Key); !seen[id] {
				seen[id] = true
				elements[o.Set+o.Map]++
			}
		}
	}
	return sameCounts(rules, have.Rules, nil) && sameCounts(elements, have.Elements, intervals)
}

func sameCounts(want, have map[string]int, roughly map[string]bool) bool {
	if len(have) != len(want) {
		return false
	}
	for name, n := range want {
		got, ok := have[name]
		if !ok || got != n && !roughly[name] || (got == 0) != (n == 0) {
			return false
		}
	}
	return true
}
