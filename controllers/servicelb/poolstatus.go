// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
)

// PoolStatus returns the desired status of each AddressPool.
func PoolStatus(s *State, plan map[types.NamespacedName]Allocation, objects []*addresspool.AddressPool,
	flaws map[string]Flaw) map[string]addresspool.Status {
	used := map[string]map[netip.Addr]bool{}
	for _, v := range plan {
		for _, a := range v.Addresses {
			if p := s.poolOf(a); v.Pool && p != nil {
				if used[p.Name] == nil {
					used[p.Name] = map[netip.Addr]bool{}
				}
				used[p.Name][a] = true
			}
		}
	}
	nodes, out := s.servingNodes(), map[string]addresspool.Status{}
	for _, o := range objects {
		i := slices.IndexFunc(s.Pools, func(p Pool) bool { return p.Name == o.Name })
		if i < 0 {
			continue
		}
		p := &s.Pools[i]
		c := metav1.Condition{Type: addresspool.Ready, Status: metav1.ConditionTrue, Reason: ReasonReady, ObservedGeneration: o.Generation}
		flaw := flaws[o.Name]
		if flaw.Reason == "" {
			flaw = p.outOfReach(nodes)
		}
		if flaw.Reason != "" {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, flaw.Reason, flaw.Message
		}
		status := addresspool.Status{Total: int64(p.size()), Used: int64(len(used[o.Name])), Conditions: slices.Clone(o.Status.Conditions)}
		meta.SetStatusCondition(&status.Conditions, c)
		out[o.Name] = status
	}
	return out
}

// outOfReach returns a Flaw that names each range whose first or last address no node can announce. It returns the zero
// Flaw if there is no such range.
func (p *Pool) outOfReach(nodes []node) Flaw {
	var far []string
	for _, r := range p.Ranges {
		for _, a := range []netip.Addr{r.First, r.Last} {
			if !slices.ContainsFunc(nodes, func(n node) bool { return n.reaches(a, p) }) {
				far = append(far, r.String())
				break
			}
		}
	}
	if len(far) == 0 {
		return Flaw{}
	}
	return Flaw{ReasonOutOfReach, fmt.Sprintf("no node that may answer is in the network of %s", strings.Join(far, ", "))}
}

// withoutPool returns the addresses that a Service loses without requesting that: they are in no pool any more, and
// belong to no node.
func (s *State) withoutPool(had, has []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(had, func(a netip.Addr) bool {
		return slices.Contains(has, a) || s.poolOf(a) != nil ||
			slices.ContainsFunc(s.Nodes, func(n *corev1.Node) bool { return slices.Contains(nodeAddresses(n), a) })
	})
}
