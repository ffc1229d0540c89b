// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy/config"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// subscribe connects the informers to the back end. Upstream's configs lose events between their creation and the
// registration of a handler, so the informers must not run yet.
func (p *Proxy) subscribe(ctx context.Context) error {
	informers := p.o.Informers
	if informers.Running() {
		return errors.New("proxy: the informers run already: make the proxy first")
	}
	from, err := informers.Services()
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	e := events{p}
	services := config.NewServiceConfig(ctx, from.Services, 0)
	services.RegisterEventHandler(e)
	slices := config.NewEndpointSliceConfig(ctx, from.EndpointSlices, 0)
	slices.RegisterEventHandler(e)
	cidrs := config.NewServiceCIDRConfig(ctx, from.ServiceCIDRs, 0)
	cidrs.RegisterEventHandler(e)
	// Upstream's config for nodes is not used: it takes the labels of any node in an event for this node's.
	nodes, err := informers.Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    e.onNode,
		UpdateFunc: func(_, obj any) { e.onNode(obj) },
		DeleteFunc: e.onNodeGone,
	})
	if err != nil {
		return fmt.Errorf("proxy: watching the node's topology labels: %w", err)
	}
	p.nodesSynced = nodes.HasSynced
	p.sources = []func(stop <-chan struct{}){services.Run, slices.Run, cidrs.Run, func(stop <-chan struct{}) {
		if cache.WaitForCacheSync(stop, nodes.HasSynced) {
			p.trigger()
		}
	}}
	return nil
}

// events handles the informers' events. It passes them to the back end, which only records them, and wakes the loop.
type events struct{ p *Proxy }

func (e events) OnServiceAdd(s *corev1.Service) {
	e.p.services(nil, s)
	e.p.trigger()
}

func (e events) OnServiceUpdate(old, s *corev1.Service) {
	e.p.services(old, s)
	e.p.trigger()
}

func (e events) OnServiceDelete(s *corev1.Service) {
	e.p.services(s, nil)
	e.p.trigger()
}

func (e events) OnServiceSynced() {
	e.p.mu.Lock()
	e.p.servicesSynced = true
	e.p.mu.Unlock()
	e.p.trigger()
}

func (e events) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice) {
	e.p.serverAddresses(s, false)
	e.p.reachable.handleSlice(s)
	e.p.trigger()
}

func (e events) OnEndpointSliceUpdate(old, s *discoveryv1.EndpointSlice) {
	if groupOf(old) != groupOf(s) {
		e.p.serverAddresses(old, true)
	}
	e.p.serverAddresses(s, false)
	e.p.reachable.update(old, s)
	e.p.trigger()
}

func (e events) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) {
	e.p.serverAddresses(s, true)
	e.p.reachable.remove(s)
	e.p.trigger()
}

func (e events) OnEndpointSlicesSynced() {
	e.p.mu.Lock()
	e.p.slicesSynced = true
	e.p.mu.Unlock()
	e.p.trigger()
}

// onNode forwards this node's zone, the only label that affects Services' traffic (KEP-2433).
func (e events) onNode(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	e.p.nodeAddresses(node.Name, slices.SortedFunc(slices.Values(clusterconfig.NodeAddresses(node)), netip.Addr.Compare))
	e.p.nodeTunnelAt(node.Name, node.Annotations[clusterconfig.UnderlayAnnotation])
	e.p.nodeTunnel(node.Name, clusterconfig.TunnelPort(node.Annotations[clusterconfig.BackendAnnotation]))
	if node.Name != e.p.o.Informers.NodeName() {
		return
	}
	zone, has := node.Labels[corev1.LabelTopologyZone]
	e.p.mu.Lock()
	changed := zone != e.p.zone
	e.p.zone = zone
	e.p.mu.Unlock()
	if !changed {
		return
	}
	labels := map[string]string{}
	if has {
		labels[corev1.LabelTopologyZone] = zone
	}
	e.p.backend.OnTopologyChange(labels)
	e.wantFullSync()
}

func (e events) onNodeGone(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if node, ok := obj.(*corev1.Node); ok {
		e.p.nodeAddresses(node.Name, nil)
		e.p.nodeTunnelAt(node.Name, "")
		e.p.nodeTunnel(node.Name, 0)
	}
}

// OnServiceCIDRsChanged forwards the API's CIDRs, once there are any. Only a full sync uses them.
func (e events) OnServiceCIDRsChanged(cidrs []string) {
	e.p.mu.Lock()
	changed := len(cidrs) > 0 && !sets.New(cidrs...).Equal(sets.New(e.p.serviceCIDRs...))
	if changed {
		e.p.serviceCIDRs = cidrs
	}
	e.p.mu.Unlock()
	if changed {
		e.p.backend.OnServiceCIDRsChanged(cidrs)
		e.p.serviceNetworks(cidrs)
		e.wantFullSync()
	}
}

// wantFullSync must be called after the back end has received the change: a sync in between would clear the flag too
// early.
func (e events) wantFullSync() {
	e.p.mu.Lock()
	e.p.fullSync = true
	e.p.mu.Unlock()
	e.p.trigger()
}
