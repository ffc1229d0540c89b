// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"cmp"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// Candidates returns, for each address of a pool that a Service has, the nodes that could announce it. Such a node
// serves, is selected by the pool, and is in the address's network. For a Service that uses local endpoints only, it
// has endpoints of it.
func Candidates(s *State, plan map[types.NamespacedName]Allocation) map[netip.Addr][]string {
	out := map[netip.Addr][]string{}
	nodes, endpoints := s.servingNodes(), withEndpoints(s.Slices)
	for _, svc := range byAge(s.Services) {
		v := plan[serviceKey(svc)]
		if !v.Pool {
			continue
		}
		for _, a := range v.Addresses {
			if _, done := out[a]; done && !isLocal(svc) { // Services that share it have the same pods, or do not use local endpoints only
				continue
			}
			out[a] = nil
			for _, n := range nodes {
				if n.reaches(a, s.poolOf(a)) && (!isLocal(svc) || endpoints[serviceKey(svc)][n.name]) {
					out[a] = append(out[a], n.name)
				}
			}
		}
	}
	return out
}

// reaches reports whether a node may announce an address of a pool, and is in its network.
func (n node) reaches(a netip.Addr, p *Pool) bool {
	return p != nil && (p.Nodes == nil || p.Nodes.Matches(n.labels)) &&
		slices.ContainsFunc(n.networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// InUse returns the addresses which their holders report as used by another machine. A node's report counts only for
// addresses that it holds.
func InUse(nodes []*corev1.Node, record loadbalancer.Holders) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, n := range nodes {
		for a, by := range loadbalancer.ReadConflicts(n.Annotations[loadbalancer.ConflictsAnnotation]) {
			if record[a].Node == n.Name {
				out[a] = by.String()
			}
		}
	}
	return out
}

// Proven returns the addresses which their holders report as proven. A node's report counts only for its present term
// as holder.
func Proven(nodes []*corev1.Node, record loadbalancer.Holders) loadbalancer.Proven {
	out := loadbalancer.Proven{}
	for _, n := range nodes {
		for a, term := range loadbalancer.ReadProven(n.Annotations[loadbalancer.ProvenAnnotation]) {
			if record[a].Same(loadbalancer.Holder{Node: n.Name, Term: term}) {
				out[a] = term
			}
		}
	}
	return out
}

// holderReports has the nodes' reports about the addresses that they hold.
type holderReports struct {
	inUse  map[netip.Addr]string // the Ethernet address of the other machine, by address
	proven loadbalancer.Proven
}

// isProven reports whether an address was proven in a holder's term.
func (s holderReports) isProven(a netip.Addr, h loadbalancer.Holder) bool {
	term, proven := s.proven[a]
	return proven && term == h.Term
}

// Assign returns which node announces which address. A holder stays while it is a live candidate. An address that needs
// another holder gets the live candidate with the fewest addresses. If no candidate is alive, the address stays with
// its holder: then this server is more probably the one that receives nothing. term is a number that no earlier change
// has had. An address that is not proven yet, or that another machine uses, is new to its holder.
func Assign(before loadbalancer.Holders, term uint64, candidates map[netip.Addr][]string, alive func(node string) bool,
	said holderReports) loadbalancer.Holders {
	out, load := loadbalancer.Holders{}, map[string]int{}
	var homeless []netip.Addr
	for _, a := range slices.SortedFunc(maps.Keys(candidates), netip.Addr.Compare) {
		h, had := before[a]
		could := slices.DeleteFunc(slices.Clone(candidates[a]), func(n string) bool { return !alive(n) })
		if had && (slices.Contains(could, h.Node) || len(could) == 0 && slices.Contains(candidates[a], h.Node)) {
			h.New = h.New && !said.isProven(a, h)
			out[a] = h
			load[h.Node]++
			continue
		}
		homeless = append(homeless, a)
	}
	for _, a := range homeless {
		could := slices.DeleteFunc(slices.Clone(candidates[a]), func(n string) bool { return !alive(n) })
		if len(could) == 0 {
			if h := before[a]; h.Node != "" {
				out[a] = loadbalancer.Holder{Term: term, New: isNew(h, said, a)} // no holder until there is a live candidate
			} else {
				out[a] = before[a]
			}
			continue
		}
		best := slices.MinFunc(could, func(m, n string) int {
			return cmp.Or(load[m]-load[n], strings.Compare(nodeOrderKey(a, m), nodeOrderKey(a, n)))
		})
		load[best]++
		out[a] = loadbalancer.Holder{Node: best, Term: term, New: isNew(before[a], said, a)}
	}
	return out
}

// isNew reports whether the next holder has to probe the network before it announces an address.
func isNew(before loadbalancer.Holder, said holderReports, a netip.Addr) bool {
	return before.Term == 0 || said.inUse[a] != "" || before.New && !said.isProven(a, before)
}

// nodeOrderKey returns a key that orders nodes differently for each address.
func nodeOrderKey(a netip.Addr, node string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node + "/" + a.String()))
	return string(h.Sum(nil))
}
