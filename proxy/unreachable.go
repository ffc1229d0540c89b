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

// Unreachable says which nodes this one cannot reach (internal/reachability).
type Unreachable interface {
	// Nodes are their names. The map is not changed.
	Nodes() map[string]bool
	// Changed returns a channel that is closed when Nodes changes next.
	Changed() <-chan struct{}
}

// reachabilityFilter stands between the EndpointSlices and the back end: endpoints on nodes that this one cannot reach
// are handed on as neither ready nor serving, for each port of a Service for which others remain. Where none would
// remain all stay as they are: it may be this node that is cut off, and then nothing is known of them.
//
// As long as all nodes are reached it hands on the objects themselves.
type reachabilityFilter struct {
	to backend

	mu               sync.Mutex // held during calls of the back end, so that it receives a slice's states in their order
	unreachableNodes map[string]bool
	groups           map[group][]*slicePair
}

// group is the slices of one Service with addresses of one family.
type group struct {
	service types.NamespacedName
	family  discoveryv1.AddressType
}

// slicePair is an EndpointSlice as it is, and as the back end was handed it.
type slicePair struct{ is, handed *discoveryv1.EndpointSlice }

func newReachabilityFilter(to backend) *reachabilityFilter {
	return &reachabilityFilter{to: to, groups: map[group][]*slicePair{}}
}

func groupOf(s *discoveryv1.EndpointSlice) group {
	return group{types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}, s.AddressType}
}

func find(in []*slicePair, s *discoveryv1.EndpointSlice) int {
	return slices.IndexFunc(in, func(other *slicePair) bool { return other.is.Name == s.Name })
}

// put takes a slice that is new or has changed.
func (f *reachabilityFilter) put(s *discoveryv1.EndpointSlice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := groupOf(s)
	if i := find(f.groups[g], s); i >= 0 {
		f.groups[g][i].is = s
	} else {
		f.groups[g] = append(f.groups[g], &slicePair{is: s})
	}
	f.sync(f.groups[g])
}

// update is put for a slice that may have belonged to another Service: its label is the owner's to change.
func (f *reachabilityFilter) update(old, s *discoveryv1.EndpointSlice) {
	if groupOf(old) != groupOf(s) {
		f.remove(old)
	}
	f.put(s)
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
	f.notify(all[i].handed, nil)
	if all = slices.Delete(all, i, i+1); len(all) == 0 {
		delete(f.groups, g)
		return
	}
	f.groups[g] = all
	f.sync(all)
}

// notify calls the back end for a slice that was added (was is nil), changed or removed (is is nil).
func (f *reachabilityFilter) notify(was, is *discoveryv1.EndpointSlice) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		f.to.OnEndpointSliceAdd(is)
	case is == nil:
		f.to.OnEndpointSliceDelete(was)
	default:
		f.to.OnEndpointSliceUpdate(was, is)
	}
}

// setUnreachable replaces the set of nodes that are not reached, and says whether that changes anything.
func (f *reachabilityFilter) setUnreachable(down map[string]bool) (changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unreachableNodes = down
	for _, g := range f.groups {
		changed = f.sync(g) || changed
	}
	return changed
}

// sync notifies the back end of what has changed of a group.
func (f *reachabilityFilter) sync(g []*slicePair) (changed bool) {
	reached := f.reached(g)
	for _, s := range g {
		now := f.rewrite(s.is, reached)
		if s.handed != nil && (s.handed == now || now != s.is && reflect.DeepEqual(s.handed, now)) {
			continue
		}
		f.notify(s.handed, now)
		s.handed, changed = now, true
	}
	return changed
}

// reached are the ports, by name, for which a group has an endpoint that is reached and can be used. It is nil when all
// of the group's nodes are reached.
func (f *reachabilityFilter) reached(g []*slicePair) map[string]bool {
	if !slices.ContainsFunc(g, func(s *slicePair) bool { return slices.ContainsFunc(s.is.Endpoints, f.unreachable) }) {
		return nil
	}
	out := map[string]bool{}
	for _, s := range g {
		if !slices.ContainsFunc(s.is.Endpoints, func(e discoveryv1.Endpoint) bool { return usable(e) && !f.unreachable(e) }) {
			continue
		}
		for _, p := range s.is.Ports {
			out[ptr.Deref(p.Name, "")] = true
		}
	}
	return out
}

func (f *reachabilityFilter) unreachable(e discoveryv1.Endpoint) bool {
	return e.NodeName != nil && f.unreachableNodes[*e.NodeName]
}

// usable says whether upstream's proxiers send anything to an endpoint: it is ready or, if none is, on its way out and
// still serving. A slice that says nothing of ready or serving means that it is, as the API's documentation has it.
func usable(e discoveryv1.Endpoint) bool {
	c := e.Conditions
	return ptr.Deref(c.Ready, true) || ptr.Deref(c.Serving, true) && ptr.Deref(c.Terminating, false)
}

// rewrite is the slice as the back end is to see it: itself, when nothing is to be changed.
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

// followReachability follows which nodes are not reached until ctx is done.
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
