// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"maps"
	"time"
)

// RejectedNamespace is why nft or the kernel refused the rules of one namespace. The table is written without these:
// with them, those of all other namespaces would stay as they were.
type RejectedNamespace struct {
	Hash string // what was refused, as a hash: another one is tried again
	Why  string
}

// refusedFor is how long a namespace counts as refused. What was the reason may have been the moment's.
const refusedFor = time.Minute

// alone is a table with nothing but the rules of this namespace.
func (p *namespaceRules) alone() []byte {
	r := newRuleset()
	for d := range p.out.Pods {
		maps.Copy(r.Pods[d], p.out.Pods[d])
	}
	maps.Copy(r.Sets, p.out.Sets)
	maps.Copy(r.Chains, p.out.Chains)
	r.closeThoseWithout()
	return whole(r)
}

// closeThoseWithout makes the chain of pods about which nothing can be allowed, where it is named.
func (r *Ruleset) closeThoseWithout() {
	for d := range r.Pods {
		for _, chain := range r.Pods[d] {
			if chain == closed {
				r.Chains[closed] = Chain{}
			}
		}
	}
}

// frameOnly is a table in which all restricted pods are closed.
func frameOnly(of *Ruleset) []byte {
	r := newRuleset()
	for d := range of.Pods {
		for ip := range of.Pods[d] {
			r.Pods[d][ip] = closed
		}
	}
	r.closeThoseWithout()
	return whole(r)
}

// rejectedAmong finds the namespaces whose rules are the reason that it was refused, and says whether there are any.
// try says whether a table would be taken.
func (e *Enforcer) rejectedAmong(ctx context.Context, r Result, try func(context.Context, []byte) error) bool {
	if try(ctx, frameOnly(r.Ruleset)) != nil {
		return false // nothing is taken at present: that is no namespace's fault
	}
	found := false
	for _, p := range r.namespaces {
		if p.over != "" {
			continue
		}
		text := p.alone()
		if err := try(ctx, text); err != nil && ctx.Err() == nil {
			e.refused[p.namespace] = refusedAt{RejectedNamespace{hash(string(text)), err.Error()}, time.Now()}
			found = true
		}
	}
	return found
}

// refusedAt is a refusal and when it was.
type refusedAt struct {
	RejectedNamespace
	at time.Time
}

// refusals are those that still count.
func (e *Enforcer) refusals() map[string]RejectedNamespace {
	out := map[string]RejectedNamespace{}
	for namespace, r := range e.refused {
		if time.Since(r.at) > refusedFor {
			delete(e.refused, namespace)
			continue
		}
		out[namespace] = r.RejectedNamespace
	}
	return out
}
