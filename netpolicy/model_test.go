// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/policymodel"
)

// connection is one that a pod, or an outside client, opens to another.
type connection struct {
	from, to netip.Addr
	proto    corev1.Protocol
	port     int32
}

// allowed says whether the policies of the ends that are here admit a connection, as the documentation has it.
func (w *world) allowed(c connection) bool { return w.allowedAt(c, w.here) }

func (w *world) allowedAt(c connection, here func(netip.Addr) bool) bool {
	to := policymodel.Connection{From: c.from, To: c.to, Proto: c.proto, Port: c.port}
	if !slices.Contains(proxySources, c.from) {
		return w.model.Allowed(to, here)
	}
	// The proxy may what a pod of any ingress controller might, if it had the address.
	model := w.model
	model.Namespaces, model.Pods = maps.Clone(model.Namespaces), maps.Clone(model.Pods)
	for _, of := range controllers {
		if model.Namespaces[of.namespace] == nil {
			model.Namespaces[of.namespace] = of.labels
		}
		for _, its := range of.pods {
			model.Pods[c.from] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: of.namespace, Labels: its}}
			if model.Allowed(to, here) {
				return true
			}
		}
	}
	return false
}

// proxySources are where ingress proxies' connections come from: this node's, and that of n2.
var proxySources = []netip.Addr{
	netip.MustParseAddr("10.42.1.1"), netip.MustParseAddr("fd00:42:0:1::1"),
	netip.MustParseAddr("10.42.2.255"), netip.MustParseAddr("fd00:42:0:2:ffff:ffff:ffff:ffff"),
}

// allows is what the kernel does with a ruleset.
func (r *Ruleset) allows(c connection) bool {
	if c.from == c.to {
		return true
	}
	if name, ok := r.Pods[egress][c.from]; ok && !r.chainAllows(name, c.to, c) {
		return false
	}
	if name, ok := r.Pods[ingress][c.to]; ok && !r.chainAllows(name, c.from, c) {
		return false
	}
	return true
}

func (r *Ruleset) chainAllows(name string, other netip.Addr, c connection) bool {
	chain, ok := r.Chains[name]
	if !ok {
		panic("a pod has a chain that is not there: " + name)
	}
	return slices.ContainsFunc(chain.rules, func(rule Rule) bool {
		if rule.Proto != "" && rule.Proto != protocolName(c.proto) {
			return false
		}
		if rule.Ports != "" && !r.portIn(rule.Ports, c.port) {
			return false
		}
		if rule.Peers == "" {
			return true
		}
		set := r.Sets[rule.Peers]
		if rule.Family != familyOf(other) {
			return false
		}
		if rule.DNS {
			return set.Elems[portElement(netip.AddrPortFrom(other, uint16(c.port)))]
		}
		return setHas(set, other)
	})
}

func (r *Ruleset) portIn(words string, port int32) bool {
	spans := map[string]bool{words: true}
	if words[0] == '@' {
		spans = r.Sets[words[1:]].Elems
	}
	for s := range spans {
		first, last := cutNumbers(s)
		if first <= port && port <= last {
			return true
		}
	}
	return false
}

func setHas(set Set, ip netip.Addr) bool {
	for text := range set.Elems {
		first, last := cutAddrs(text)
		if !ip.Less(first) && !last.Less(ip) {
			return true
		}
	}
	return false
}
