// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/ingress/certificate"
)

const (
	// maxTable bounds the memory that routes take in a proxy, in bytes, as far as it can be estimated. A namespace has at most half.
	maxTable = 48 << 20
	// matchCost is what a match takes, textCost a byte of its texts, and stepCost a step of an expression.
	matchCost, textCost, stepCost = 2 << 10, 8, 160
)

// bound leaves out routes that take more of the proxies' memory than there is: those of namespaces that take too much, the youngest first. A route takes its
// part at each host that has it, and a Gateway may have many.
func (c *compiler) bound() {
	copies := map[*route]int{}
	for _, g := range c.gateways {
		for _, s := range g.ports() {
			for host := range s.hosts {
				for _, routes := range s.routesAt(host) {
					for _, r := range routes {
						copies[r]++
					}
				}
			}
		}
	}
	byAge := slices.SortedStableFunc(slices.Values(c.routes), func(a, b *route) int { return older(a.object, b.object) })
	spent, all := map[string]int{}, 0
	for _, r := range byAge {
		cost := copies[r] * r.cost()
		if namespace := r.object.GetNamespace(); spent[namespace]+cost <= maxTable/2 && all+cost <= maxTable {
			spent[namespace] += cost
			all += cost
			continue
		}
		r.leaveOut(problem{"TooLarge", fmt.Sprintf("the routes of the namespace take more memory in the proxies than one namespace may have, or those of the cluster "+
			"more than there is; this one is at %d hosts: fewer hosts, matches and filters make room", copies[r])})
	}
}

// leaveOut takes a route from all of its listeners.
func (r *route) leaveOut(why problem) {
	for _, p := range r.parents {
		for _, a := range p.attached {
			a.listener.attached = slices.DeleteFunc(a.listener.attached, func(other *attachment) bool { return other == a })
			a.listener.index = nil
		}
		if len(p.attached) > 0 {
			p.attached, p.refused = nil, why
		}
	}
}

// cost is what a route takes at one host, in bytes.
func (r *route) cost() int {
	out := matchCost + textCost*(size(r.streams.passed)+size(r.streams.terminated))
	for _, rule := range r.rules {
		each := matchCost + textCost*(size(rule.policy)+size(rule.backends))
		for _, m := range rule.matches {
			out += each + textCost*(len(m.Path)+size(m.Headers)+size(m.Query)) + stepCost*m.steps
		}
	}
	return out
}

// size is about how many bytes of text there are in a part of a table.
func size[T any](v T) int {
	if reflect.ValueOf(v).IsZero() {
		return 0
	}
	text, err := json.Marshal(v)
	if err != nil {
		return 0 // of parts of a table, which JSON can hold
	}
	return len(text)
}

// Memory is what of one Desired the next need not do again: judging Secrets, for as long as they are the same ones. Objects must not change, as those of
// informers do not. It must not be used by two calls at a time.
type Memory struct{ judged, last map[*corev1.Secret]judgement }

// judgement is what a Secret is as a certificate.
type judgement struct {
	leaf *x509.Certificate
	flaw string // empty for one that is served
}

// begin forgets what the last call has not asked for.
func (m *Memory) begin() {
	if m != nil {
		m.last, m.judged = m.judged, make(map[*corev1.Secret]judgement, len(m.judged))
	}
}

func (m *Memory) judge(s *corev1.Secret) judgement {
	if m == nil {
		leaf, flaw := certificate.Flaw(s)
		return judgement{leaf, flaw}
	}
	j, ok := m.judged[s]
	if !ok {
		if j, ok = m.last[s]; !ok {
			j.leaf, j.flaw = certificate.Flaw(s)
		}
		m.judged[s] = j
	}
	return j
}
