// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"reflect"
	"slices"
	"sync"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// Unreachable lists the nodes that this one cannot reach (internal/reachability).
type Unreachable interface {
	// Nodes returns their names. The map must not be changed.
	Nodes() map[string]bool
	// Changed returns a channel that is closed at the next change of Nodes.
	Changed() <-chan struct{}
}

// reachabilityFilter filters the EndpointSlices for the back end. It marks endpoints on nodes that this one cannot
// reach as neither ready nor serving, for each port of a Service for which others remain. Where none would remain, all
// stay unchanged: this node may be the one that is cut off, and then nothing is known about the others.
//
// While all nodes are reached it passes on the objects themselves.
type reachabilityFilter struct {
	next backend

	mu               sync.Mutex // held during calls of the back end, so that it receives a slice's states in order
	unreachableNodes map[string]bool
	groups           map[group][]*slicePair
}

// group is the slices of one Service with addresses of one family.
type group struct {
	service types.NamespacedName
	family  discoveryv1.AddressType
}

// slicePair is an EndpointSlice as received, and as passed to the back end.
type slicePair struct{ received, handed *discoveryv1.EndpointSlice }

func newReachabilityFilter(to backend) *reachabilityFilter {
	return &reachabilityFilter{next: to, groups: map[group][]*slicePair{}}
}

func groupOf(s *discoveryv1.EndpointSlice) group {
	return group{types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}, s.AddressType}
}

func find(in []*slicePair, s *discoveryv1.EndpointSlice) int {
	return slices.IndexFunc(in, func(other *slicePair) bool { return other.received.Name == s.Name })
}

// handleSlice handles a slice that was added or changed.
func (f *reachabilityFilter) handleSlice(s *discoveryv1.EndpointSlice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := groupOf(s)
	if i := find(f.groups[g], s); i >= 0 {
		f.groups[g][i].received = s
	} else {
		f.groups[g] = append(f.groups[g], &slicePair{received: s})
	}
	f.sync(f.groups[g])
}

// update handles a changed slice that may have belonged to another Service before: its owner may change its label.
func (f *reachabilityFilter) update(old, s *discoveryv1.EndpointSlice) {
	if groupOf(old) != groupOf(s) {
		f.remove(old)
	}
	f.handleSlice(s)
}

func (f *reachabilityFilter) remove(s *discoveryv1.EndpointSlice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := groupOf(s)
	all := f.groups[g]
	i := find(all, s)
	if i < 0 {
		return
	}
	f.next.OnEndpointSliceDelete(all[i].handed)
	if all = slices.Delete(all, i, i+1); len(all) == 0 {
		delete(f.groups, g)
		return
	}
	f.groups[g] = all
	f.sync(all)
}

// setUnreachable replaces the set of unreachable nodes. It returns whether that changes anything for the back end.
func (f *reachabilityFilter) setUnreachable(down map[string]bool) (changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unreachableNodes = down
	for _, g := range f.groups {
		changed = f.sync(g) || changed
	}
	return changed
}

// sync notifies the back end of a group's changes.
func (f *reachabilityFilter) sync(g []*slicePair) (changed bool) {
	reached := f.reached(g)
	for _, s := range g {
		now := f.rewrite(s.received, reached)
		if s.handed != nil && (s.handed == now || now != s.received && reflect.DeepEqual(s.handed, now)) {
			continue
		}
		f.next.OnEndpointSliceUpdate(s.handed, now)
		s.handed, changed = now, true
	}
	return changed
}

// reached returns the ports, by name, for which a group has a usable endpoint on a reached node. It returns nil when
// all of the group's nodes are reached.
func (f *reachabilityFilter) reached(g []*slicePair) map[string]bool {
	if !slices.ContainsFunc(g, func(s *slicePair) bool { return slices.ContainsFunc(s.received.Endpoints, f.unreachable) }) {
		return nil
	}
	out := map[string]bool{}
	for _, s := range g {
		if !slices.ContainsFunc(s.received.Endpoints, func(e discoveryv1.Endpoint) bool { return usable(e) && !f.unreachable(e) }) {
			continue
		}
		for _, p := range s.received.Ports {
			out[ptr.Deref(p.Name, "")] = true
		}
	}
	return out
}

func (f *reachabilityFilter) unreachable(e discoveryv1.Endpoint) bool {
	return e.NodeName != nil && f.unreachableNodes[*e.NodeName]
}

// usable reports whether upstream's proxiers send to an endpoint: it is ready or, if none is, it terminates and still
// serves. Missing values of ready and serving mean true, as the API's documentation says.
func usable(e discoveryv1.Endpoint) bool {
	c := e.Conditions
	return ptr.Deref(c.Ready, true) || ptr.Deref(c.Serving, true) && ptr.Deref(c.Terminating, false)
}

// rewrite returns the slice for the back end. It returns s itself when nothing has to be changed.
func (f *reachabilityFilter) rewrite(s *discoveryv1.EndpointSlice, reached map[string]bool) *discoveryv1.EndpointSlice {
	if reached == nil || slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return !reached[ptr.Deref(p.Name, "")] }) ||
		!slices.ContainsFunc(s.Endpoints, f.unreachable) {
		return s
	}
	out := *s
	out.Endpoints = slices.Clone(s.Endpoints)
	for i, e := range out.Endpoints {
		if f.unreachable(e) {
			out.Endpoints[i].Conditions.Ready, out.Endpoints[i].Conditions.Serving = ptr.To(false), ptr.To(false)
		}
	}
	return &out
}

// followReachability applies changes of the unreachable nodes until ctx is done.
func (p *Proxy) followReachability(ctx context.Context) {
	for {
		changed := p.o.Unreachable.Changed()
		if p.reachable.setUnreachable(p.o.Unreachable.Nodes()) {
			p.trigger()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
