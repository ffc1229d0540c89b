// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"maps"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// part names one: the Service that it is of, and its port's name.
type part struct {
	service types.NamespacedName
	port    string
}

// separate has the back end know the endpoints of a Service's port as those of its part, too.
func (d *detour) separate(service types.NamespacedName, port string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.parts[service] == nil {
		d.parts[service] = map[string]bool{}
	}
	_, known := d.parts[service][port]
	d.parts[service][port] = true
	if known {
		return
	}
	for s := range d.slicesOf(service) {
		d.handPart(port, nil, s)
	}
}

// rejoin says that the back end was told that a port has no part any more.
func (d *detour) rejoin(service types.NamespacedName, port string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parts[service][port] = false
	d.rejoined = append(d.rejoined, part{service, port})
}

// forget takes away the endpoints of parts that are no more. It is called between two syncs: one that runs meanwhile may have taken in the Services as they
// were before, and would find a part without endpoints.
func (d *detour) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.rejoined {
		if needed, known := d.parts[p.service][p.port]; needed || !known {
			continue
		}
		if delete(d.parts[p.service], p.port); len(d.parts[p.service]) == 0 {
			delete(d.parts, p.service)
		}
		for s := range d.slicesOf(p.service) {
			d.handPart(p.port, s, nil)
		}
	}
	d.rejoined = nil
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
	of := is
	if is == nil {
		of = was
	}
	d.handAs(was, is)
	for port := range d.parts[groupOf(of).service] {
		d.handPart(port, was, is)
	}
}

func (d *detour) handPart(port string, was, is *discoveryv1.EndpointSlice) {
	d.handAs(ofPart(was, port), ofPart(is, port))
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

// ofPart is a slice as a part has it, with that port alone: the copies of a slice with many ports together are no larger than the slice. It is nil
// where the slice is not of the port.
func ofPart(s *discoveryv1.EndpointSlice, port string) *discoveryv1.EndpointSlice {
	if s == nil {
		return nil
	}
	var ports []discoveryv1.EndpointPort
	for _, p := range s.Ports {
		if ptr.Deref(p.Name, "") == port {
			ports = append(ports, p)
		}
	}
	if ports == nil {
		return nil
	}
	out := *s
	out.Ports, out.Labels = slices.Clip(ports), maps.Clone(s.Labels)
	out.Labels[discoveryv1.LabelServiceName] = partName(s.Labels[discoveryv1.LabelServiceName], port)
	return &out
}
