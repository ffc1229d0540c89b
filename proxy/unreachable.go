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

// detour stands between the EndpointSlices and the back end: endpoints on nodes that this one cannot reach are handed
// on as neither ready nor serving, for each port of a Service for which others remain. Where none would remain all stay
// as they are: it may be this node that is cut off, and then nothing is known of them.
//
// As long as all nodes are reached it hands on the objects themselves.
type detour struct {
	to backend

	mu     sync.Mutex // held during calls of the back end, so that it receives a slice's states in their order
	down   map[string]bool
	groups map[group][]*slicePair
}

// group is the slices of one Service with addresses of one family.
type group struct {
	service types.NamespacedName
	family  discoveryv1.AddressType
}

// slicePair is an EndpointSlice as it is, and as the back end was handed it.
type slicePair struct{ is, handed *discoveryv1.EndpointSlice }

func newDetour(to backend) *detour {
	return &detour{to: to, groups: map[group][]*slicePair{}}
}

func groupOf(s *discoveryv1.EndpointSlice) group {
	return group{types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}, s.AddressType}
}

func find(in []*slicePair, s *discoveryv1.EndpointSlice) int {
	return slices.IndexFunc(in, func(other *slicePair) bool { return other.is.Name == s.Name })
}

// put takes a slice that is new or has changed.
func (d *detour) put(s *discoveryv1.EndpointSlice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := groupOf(s)
	if i := find(d.groups[g], s); i >= 0 {
		d.groups[g][i].is = s
	} else {
		d.groups[g] = append(d.groups[g], &slicePair{is: s})
	}
	d.tell(d.groups[g])
}

// update is put for a slice that may have belonged to another Service: its label is the owner's to change.
func (d *detour) update(old, s *discoveryv1.EndpointSlice) {
	if groupOf(old) != groupOf(s) {
		d.remove(old)
	}
	d.put(s)
}

func (d *detour) remove(s *discoveryv1.EndpointSlice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := groupOf(s)
	all := d.groups[g]
	i := find(all, s)
	if i < 0 {
		return
	}
	d.hand(all[i].handed, nil)
	if all = slices.Delete(all, i, i+1); len(all) == 0 {
		delete(d.groups, g)
		return
	}
	d.groups[g] = all
	d.tell(all)
}

// hand tells the back end of a slice that came (was is nil), changed or went (is is nil).
func (d *detour) hand(was, is *discoveryv1.EndpointSlice) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		d.to.OnEndpointSliceAdd(is)
	case is == nil:
		d.to.OnEndpointSliceDelete(was)
	default:
		d.to.OnEndpointSliceUpdate(was, is)
	}
}

// set takes which nodes are not reached, and says whether that changes anything.
func (d *detour) set(down map[string]bool) (changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
	for _, g := range d.groups {
		changed = d.tell(g) || changed
	}
	return changed
}

// tell tells the back end what has changed of a group.
func (d *detour) tell(g []*slicePair) (changed bool) {
	reached := d.reached(g)
	for _, s := range g {
		now := d.rewrite(s.is, reached)
		if s.handed != nil && (s.handed == now || now != s.is && reflect.DeepEqual(s.handed, now)) {
			continue
		}
		d.hand(s.handed, now)
		s.handed, changed = now, true
	}
	return changed
}

// reached are the ports, by name, for which a group has an endpoint that is reached and can be used. It is nil when all
// of the group's nodes are reached.
func (d *detour) reached(g []*slicePair) map[string]bool {
	if !slices.ContainsFunc(g, func(s *slicePair) bool { return slices.ContainsFunc(s.is.Endpoints, d.lost) }) {
		return nil
	}
	out := map[string]bool{}
	for _, s := range g {
		if !slices.ContainsFunc(s.is.Endpoints, func(e discoveryv1.Endpoint) bool { return usable(e) && !d.lost(e) }) {
			continue
		}
		for _, p := range s.is.Ports {
			out[ptr.Deref(p.Name, "")] = true
		}
	}
	return out
}

func (d *detour) lost(e discoveryv1.Endpoint) bool { return e.NodeName != nil && d.down[*e.NodeName] }

// usable says whether upstream's proxiers send anything to an endpoint: it is ready or, if none is, on its way out and
// still serving. A slice that says nothing of ready or serving means that it is, as the API's documentation has it.
func usable(e discoveryv1.Endpoint) bool {
	c := e.Conditions
	return ptr.Deref(c.Ready, true) || ptr.Deref(c.Serving, true) && ptr.Deref(c.Terminating, false)
}

// rewrite is the slice as the back end is to see it: itself, when nothing is to be changed.
func (d *detour) rewrite(s *discoveryv1.EndpointSlice, reached map[string]bool) *discoveryv1.EndpointSlice {
	if reached == nil || slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return !reached[ptr.Deref(p.Name, "")] }) ||
		!slices.ContainsFunc(s.Endpoints, d.lost) {
		return s
	}
	out := *s
	out.Endpoints = slices.Clone(s.Endpoints)
	for i, e := range out.Endpoints {
		if d.lost(e) {
			out.Endpoints[i].Conditions.Ready, out.Endpoints[i].Conditions.Serving = ptr.To(false), ptr.To(false)
		}
	}
	return &out
}

// avoid follows which nodes are not reached until ctx is done.
func (p *Proxy) avoid(ctx context.Context) {
	for {
		changed := p.o.Unreachable.Changed()
		if p.detour.set(p.o.Unreachable.Nodes()) {
			p.trigger()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
