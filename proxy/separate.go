// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// share says that a part has a port; needed is false while only a sync that has begun may still ask for its endpoints there.
type share struct {
	part   string
	needed bool
}

// shares are the parts that have each port of a Service, by the port's name. A port is in several while it moves.
type shares map[string][]share

func findShare(in []share, part string) int {
	return slices.IndexFunc(in, func(s share) bool { return s.part == part })
}

// sharesOf are the parts of a Service as inParts makes them.
func sharesOf(is []*corev1.Service) shares {
	out := shares{}
	if len(is) < 2 {
		return out
	}
	for _, part := range is[1:] {
		for _, p := range part.Spec.Ports {
			out[p.Name] = append(out[p.Name], share{part.Name, true})
		}
	}
	return out
}

// separate has the back end know the endpoints of a Service's ports as those of its parts, too, which inParts has made of it.
func (d *detour) separate(is []*corev1.Service) {
	service, now := nameOf(is[0]), sharesOf(is)
	d.mu.Lock()
	defer d.mu.Unlock()
	missing := shares{}
	for port, all := range now {
		for _, s := range all {
			if i := findShare(d.parts[service][port], s.part); i >= 0 {
				d.parts[service][port][i].needed = true
			} else {
				missing[port] = append(missing[port], s)
			}
		}
	}
	if len(missing) == 0 {
		return
	}
	d.reshape(service, func() {
		if d.parts[service] == nil {
			d.parts[service] = shares{}
		}
		for port, all := range missing {
			d.parts[service][port] = append(d.parts[service][port], all...)
		}
	})
}

// rejoin says that the back end was told of a Service as it is now, with these parts and no others.
func (d *detour) rejoin(was *corev1.Service, is []*corev1.Service) {
	service, now := nameOf(was), sharesOf(is)
	d.mu.Lock()
	defer d.mu.Unlock()
	for port, all := range d.parts[service] {
		for i, s := range all {
			if s.needed && findShare(now[port], s.part) < 0 {
				all[i].needed, d.rejoined[service] = false, true
			}
		}
	}
}

// forget takes away the endpoints of ports that are in a part no more. It is called between two syncs: one that runs meanwhile may have taken in the Services
// as they were before, and would find a port without endpoints.
func (d *detour) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for service := range d.rejoined {
		d.reshape(service, func() {
			for port, all := range d.parts[service] {
				if all = slices.DeleteFunc(all, func(s share) bool { return !s.needed }); len(all) > 0 {
					d.parts[service][port] = all
				} else {
					delete(d.parts[service], port)
				}
			}
			if len(d.parts[service]) == 0 {
				delete(d.parts, service)
			}
		})
	}
	clear(d.rejoined)
}

// reshape tells the back end which endpoints parts of a Service have after a change of its shares and had not before, and the other way around.
func (d *detour) reshape(service types.NamespacedName, change func()) {
	all := slices.Collect(d.slicesOf(service))
	before := make([]map[string]*discoveryv1.EndpointSlice, len(all))
	for i, s := range all {
		before[i] = d.split(s)
	}
	change()
	for i, s := range all {
		after := d.split(s)
		for part, now := range after {
			if was := before[i][part]; was != nil && slices.Equal(was.Ports, now.Ports) {
				delete(before[i], part)
				delete(after, part)
			}
		}
		d.handParts(before[i], after)
	}
}

// slicesOf are a Service's slices as the back end knows them.
func (d *detour) slicesOf(service types.NamespacedName) func(yield func(*discoveryv1.EndpointSlice) bool) {
	return func(yield func(*discoveryv1.EndpointSlice) bool) {
		for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN} {
			for _, s := range d.groups[group{service, family}] {
				if !yield(s.told) {
					return
				}
			}
		}
	}
}

// hand tells the back end of a slice that came (was is nil), changed or went (is is nil): as the Service's, and as its parts'.
func (d *detour) hand(was, is *discoveryv1.EndpointSlice) {
	d.handAs(was, is)
	d.handParts(d.split(was), d.split(is))
}

func (d *detour) handParts(was, is map[string]*discoveryv1.EndpointSlice) {
	for part, s := range is {
		d.handAs(was[part], s)
	}
	for part, s := range was {
		if is[part] == nil {
			d.handAs(s, nil)
		}
	}
}

func (d *detour) handAs(was, is *discoveryv1.EndpointSlice) {
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

// split is a slice as its Service's parts have it, by their names, each with its own ports alone: the copies of a slice with many ports together are hardly
// larger than the slice, and made in one pass.
func (d *detour) split(s *discoveryv1.EndpointSlice) map[string]*discoveryv1.EndpointSlice {
	if s == nil {
		return nil
	}
	of := d.parts[groupOf(s).service]
	if len(of) == 0 {
		return nil
	}
	out := map[string]*discoveryv1.EndpointSlice{}
	for _, p := range s.Ports {
		for _, to := range of[ptr.Deref(p.Name, "")] {
			part := out[to.part]
			if part == nil {
				copied := *s
				part = &copied
				part.Ports, part.Labels = nil, maps.Clone(s.Labels)
				part.Labels[discoveryv1.LabelServiceName] = to.part
				out[to.part] = part
			}
			part.Ports = append(part.Ports, p)
		}
	}
	return out
}

func nameOf(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}
