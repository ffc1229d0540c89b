// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// handler takes the informers' events: it passes them to the proxier, which only notes them, and wakes the loop.
type handler struct{ n *NFTables }

func (h handler) OnServiceAdd(s *corev1.Service) {
	h.n.proxier.OnServiceAdd(s)
	h.n.trigger()
}

func (h handler) OnServiceUpdate(old, s *corev1.Service) {
	h.n.proxier.OnServiceUpdate(old, s)
	h.n.trigger()
}

func (h handler) OnServiceDelete(s *corev1.Service) {
	h.n.proxier.OnServiceDelete(s)
	h.n.trigger()
}

func (h handler) OnServiceSynced() {
	h.n.mu.Lock()
	h.n.servicesSynced = true
	h.n.mu.Unlock()
	h.n.trigger()
}

func (h handler) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice) {
	h.n.proxier.OnEndpointSliceAdd(s)
	h.n.trigger()
}

func (h handler) OnEndpointSliceUpdate(old, s *discoveryv1.EndpointSlice) {
	h.n.proxier.OnEndpointSliceUpdate(old, s)
	h.n.trigger()
}

func (h handler) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) {
	h.n.proxier.OnEndpointSliceDelete(s)
	h.n.trigger()
}

func (h handler) OnEndpointSlicesSynced() {
	h.n.mu.Lock()
	h.n.slicesSynced = true
	h.n.mu.Unlock()
	h.n.trigger()
}

func (h handler) OnTopologyChange(labels map[string]string) {
	h.n.mu.Lock()
	h.n.topology = maps.Clone(labels)
	h.n.mu.Unlock()
	h.n.proxier.OnTopologyChange(labels)
	h.n.trigger()
}

// OnServiceCIDRsChanged passes on what the API says, once it says something. The proxier uses it in full syncs only,
// an hour apart; a topology change that changes nothing is how to ask for one now.
func (h handler) OnServiceCIDRsChanged(cidrs []string) {
	h.n.mu.Lock()
	changed := len(cidrs) > 0 && !equalSets(cidrs, h.n.serviceCIDRs)
	if changed {
		h.n.serviceCIDRs = cidrs
	}
	topology := h.n.topology
	h.n.mu.Unlock()
	if !changed {
		return
	}
	h.n.proxier.OnServiceCIDRsChanged(cidrs)
	h.n.proxier.OnTopologyChange(topology)
	h.n.trigger()
}
