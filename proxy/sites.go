// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"slices"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// site is who claims one address. A list by name begins and ends with different namespaces unless all are of one; in a list by age the oldest comes first.
type site struct {
	external map[*claim]bool
	balanced []*claim                  // by name
	byAge    map[lbports.Port][]*claim // the external ones that have a port
	byName   map[lbports.Port][]*claim // the balanced ones that have it
}

func newSite() *site {
	return &site{external: map[*claim]bool{}, byAge: map[lbports.Port][]*claim{}, byName: map[lbports.Port][]*claim{}}
}

// judge says why an external claim is refused.
func (s *site) judge(cl *claim) refusal {
	namespace := cl.key.Namespace
	if len(s.balanced) > 0 && !s.gives(namespace) {
		return refusal{by: s.balanced[0].claimant}
	}
	for _, p := range cl.ports {
		if by := foreign(s.byName[p], namespace); by != nil {
			return refusal{by: by.claimant, port: p}
		}
		if by := s.older(cl, p); by != nil {
			return refusal{by: by.claimant, port: p, aged: true}
		}
	}
	return refusal{}
}

// gives says whether a load balancer has given the address to a Service of a namespace.
func (s *site) gives(namespace string) bool {
	_, found := slices.BinarySearchFunc(s.balanced, namespace, func(cl *claim, namespace string) int { return cmp.Compare(cl.key.Namespace, namespace) })
	return found
}

// older is the oldest external claim of another namespace that has a port and is older than a claim; nil if there is none. Where load balancers have given the address, those count
// whose namespace has it: to the others it is refused.
func (s *site) older(cl *claim, p lbports.Port) *claim {
	for _, other := range s.byAge[p] {
		switch {
		case other == cl:
			return nil
		case other.key.Namespace != cl.key.Namespace && (len(s.balanced) == 0 || s.gives(other.key.Namespace)):
			return other
		}
	}
	return nil
}

// setRoles comes before the ports move. A load balancer's address is refused to whole namespaces, so where one comes or goes all are judged again.
func (s *site) setRoles(cl *claim, is roles, again map[*claim]bool) {
	was := cl.roles
	cl.roles = is
	delete(s.external, cl)
	delete(again, cl)
	if is.external {
		s.external[cl], again[cl] = true, true
	}
	if was.balanced == is.balanced {
		return
	}
	s.balanced = listed(s.balanced, cl, is.balanced, compareNames)
	for other := range s.external {
		again[other] = true
	}
}

// moveExternal takes ports from an external claim and adds some. Younger ones of other namespaces may be refused because of it.
func (s *site) moveExternal(cl *claim, leave, enter []lbports.Port, again map[*claim]bool) {
	for _, p := range leave {
		for _, other := range younger(s.byAge[p], cl) {
			if other.refused == (refusal{by: cl.claimant, port: p, aged: true}) {
				again[other] = true
			}
		}
		keep(s.byAge, p, cl, false, compareAges)
	}
	for _, p := range enter {
		keep(s.byAge, p, cl, true, compareAges)
		if len(s.balanced) > 0 && !s.gives(cl.key.Namespace) {
			continue // it is refused itself
		}
		for _, other := range younger(s.byAge[p], cl) {
			if other.refused == (refusal{}) && other.key.Namespace != cl.key.Namespace {
				again[other] = true
			}
		}
	}
}

// moveBalanced does the same with a load balancer's claim. External ones of other namespaces may be refused because of it, whichever is older.
func (s *site) moveBalanced(cl *claim, leave, enter []lbports.Port, again map[*claim]bool) {
	for _, p := range leave {
		for _, other := range s.byAge[p] {
			if other.refused == (refusal{by: cl.claimant, port: p}) {
				again[other] = true
			}
		}
		keep(s.byName, p, cl, false, compareNames)
	}
	for _, p := range enter {
		keep(s.byName, p, cl, true, compareNames)
		for _, other := range s.byAge[p] {
			if other.refused == (refusal{}) && other.key.Namespace != cl.key.Namespace {
				again[other] = true
			}
		}
	}
}

// foreign is one of another namespace in a list by name; nil if there is none.
func foreign(list []*claim, namespace string) *claim {
	if n := len(list); n > 0 {
		for _, cl := range []*claim{list[0], list[n-1]} {
			if cl.key.Namespace != namespace {
				return cl
			}
		}
	}
	return nil
}

// younger is what comes after a claim in a list by age.
func younger(list []*claim, cl *claim) []*claim {
	i, found := slices.BinarySearchFunc(list, cl, compareAges)
	if found {
		i++
	}
	return list[i:]
}

// keep has a claim be in the list of a port, or not.
func keep(lists map[lbports.Port][]*claim, p lbports.Port, cl *claim, in bool, compare func(a, b *claim) int) {
	if list := listed(lists[p], cl, in, compare); len(list) > 0 {
		lists[p] = list
	} else {
		delete(lists, p)
	}
}

func listed(list []*claim, cl *claim, in bool, compare func(a, b *claim) int) []*claim {
	i, found := slices.BinarySearchFunc(list, cl, compare)
	switch {
	case in && !found:
		return slices.Insert(list, i, cl)
	case !in && found:
		return slices.Delete(list, i, i+1)
	}
	return list
}

func compareNames(a, b *claim) int {
	return cmp.Or(cmp.Compare(a.key.Namespace, b.key.Namespace), cmp.Compare(a.key.Name, b.key.Name))
}

func compareAges(a, b *claim) int {
	return cmp.Or(a.created.Compare(b.created.Time), compareNames(a, b))
}
