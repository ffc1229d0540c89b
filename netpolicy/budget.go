// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Limits limit the memory and time of a node that policies may use. A user who may write policies in a namespace can
// write very many. Exceeding the limits then affects only that user's own pods, never another namespace's.
type Limits struct {
	RulesOfPod int // in the chain of one pod and direction
	Rules      int // for one namespace
	Elements   int // for one namespace
	Work       int // compared values, read ports and exceptions, for one namespace
	// Node is for all namespaces together, in elements; a rule counts as ruleWeight. The largest namespaces exceed it
	// first.
	Node int
}

// ruleWeight is how many elements need as much memory as a rule while a table is written.
const ruleWeight = 3

// DefaultLimits returns limits that a machine with 1 GB can sustain while the whole table is written: ADR 0086 has the
// costs.
func DefaultLimits() Limits {
	return Limits{RulesOfPod: 5_000, Rules: 20_000, Elements: 50_000, Work: 5_000_000, Node: 100_000}
}

func (p *namespaceRules) setExceeded(format string, args ...any) {
	if p.exceeded == "" {
		p.exceeded = fmt.Sprintf(format, args...)
	}
}

func (p *namespaceRules) charge(account *int, n, limit int, what string) {
	if *account += n; *account > limit {
		p.setExceeded("more than %d %s", limit, what)
	}
}

// spendWork adds to the work before it is done, and returns whether it is within the limit.
func (p *namespaceRules) spendWork(n int) bool {
	p.charge(&p.work, n, p.limits.Work, "comparisons")
	return p.exceeded == ""
}

// addedElements returns how many elements the namespace adds to a ruleset: namespaces with the same rules share chains,
// and those with the same selections share sets.
func (p *namespaceRules) addedElements(to *Ruleset) (n int) {
	for name, c := range p.ruleset.Chains {
		if _, there := to.Chains[name]; !there {
			n += ruleWeight * (len(c.rules) + 1)
		}
	}
	for name, s := range p.ruleset.Sets {
		if _, there := to.Sets[name]; !there {
			n += len(s.Elems) + 1
		}
	}
	return n
}

// addNamespaces adds the rules of the namespaces to r, the smallest namespace first. Once the sum exceeds the node's
// limit, it closes the restricted pods of that namespace and of all larger ones. r.OverBudget gets the reason for each
// namespace.
func addNamespaces(namespaces []*namespaceRules, limits Limits, r Result) {
	slices.SortFunc(namespaces, func(a, b *namespaceRules) int {
		return cmp.Or(cmp.Compare(ruleWeight*a.rules+a.elements, ruleWeight*b.rules+b.elements), cmp.Compare(a.namespace, b.namespace))
	})
	total := 0
	for _, p := range namespaces {
		if p.exceeded == "" {
			if total += p.addedElements(r.Ruleset); total > limits.Node {
				p.setExceeded("with those of all namespaces more than %d rules and elements", limits.Node)
				p.close()
			}
		}
		if p.exceeded != "" {
			r.OverBudget[p.namespace] = p.exceeded
		}
		for d := range p.ruleset.Pods {
			maps.Copy(r.Ruleset.Pods[d], p.ruleset.Pods[d])
		}
		maps.Copy(r.Ruleset.Sets, p.ruleset.Sets)
		maps.Copy(r.Ruleset.Chains, p.ruleset.Chains)
	}
	r.Ruleset.closeThoseWithout()
}
