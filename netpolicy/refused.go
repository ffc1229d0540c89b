// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"maps"
	"time"
)

// RejectedNamespace is why nft or the kernel rejected the rules of one namespace. The table is written without these
// rules: with them, no other namespace's rules could be updated.
type RejectedNamespace struct {
	Hash string // of the rejected rules; other rules are tried again
	Why  string
}

// refusedFor is how long rules of a namespace that nft or the kernel rejected are left out. Then they are tried again,
// since the cause may have been temporary.
const refusedFor = time.Minute

// tableAlone returns the table as it would be if only this namespace had policies.
func (p *namespaceRules) tableAlone() []byte {
	r := newRuleset()
	for d := range p.ruleset.Pods {
		maps.Copy(r.Pods[d], p.ruleset.Pods[d])
	}
	maps.Copy(r.Sets, p.ruleset.Sets)
	maps.Copy(r.Chains, p.ruleset.Chains)
	r.closeThoseWithout()
	return renderReplacement(r)
}

// closeThoseWithout adds the chain closed if a pod has it. It is the chain of pods for which nothing can be allowed.
func (r *Ruleset) closeThoseWithout() {
	for d := range r.Pods {
		for _, chain := range r.Pods[d] {
			if chain == closedChain {
				r.Chains[closedChain] = Chain{}
			}
		}
	}
}

// frameOnly returns a table in which all restricted pods are closed.
func frameOnly(of *Ruleset) []byte {
	r := newRuleset()
	for d := range of.Pods {
		for ip := range of.Pods[d] {
			r.Pods[d][ip] = closedChain
		}
	}
	r.closeThoseWithout()
	return renderReplacement(r)
}

// rejectedAmong finds the namespaces whose rules made the kernel reject the table, and returns whether there are any.
// try returns an error if a table would be rejected.
func (e *Enforcer) rejectedAmong(ctx context.Context, r Result, try func(context.Context, []byte) error) bool {
	if try(ctx, frameOnly(r.Ruleset)) != nil {
		return false // any table is rejected at present: no namespace's rules are the cause
	}
	found := false
	for _, p := range r.namespaces {
		if p.exceeded != "" {
			continue
		}
		text := p.tableAlone()
		if err := try(ctx, text); err != nil && ctx.Err() == nil {
			e.refusedNamespaces[p.namespace] = refusedAt{RejectedNamespace{hashName(string(text)), err.Error()}, time.Now()}
			found = true
		}
	}
	return found
}

// refusedAt is a namespace whose rules the kernel rejected, and when.
type refusedAt struct {
	RejectedNamespace
	refusedTime time.Time
}

// refusals returns the rejections that are not older than refusedFor, by namespace, and deletes the others.
func (e *Enforcer) refusals() map[string]RejectedNamespace {
	out := map[string]RejectedNamespace{}
	for namespace, r := range e.refusedNamespaces {
		if time.Since(r.refusedTime) > refusedFor {
			delete(e.refusedNamespaces, namespace)
			continue
		}
		out[namespace] = r.RejectedNamespace
	}
	return out
}
