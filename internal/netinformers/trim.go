// SPDX-License-Identifier: Apache-2.0

package netinformers

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// trim removes the fields that no network part reads. For each type it lists the fields to keep, so that a field that
// upstream adds costs nothing until it is needed. The specs of Services and policies are kept as a whole, because all
// of their fields are about the network. trim does not change its argument: the first events of a fake client hold the
// very objects that the client stores.
func trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Service:
		meta := trimMetadata(o)
		if isHeadless(o) {
			return &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
				Type: o.Spec.Type, ClusterIP: o.Spec.ClusterIP, ClusterIPs: o.Spec.ClusterIPs, Ports: o.Spec.Ports,
				ExternalIPs: o.Spec.ExternalIPs,
			}}, nil
		}
		meta.Labels, meta.CreationTimestamp = o.Labels, o.CreationTimestamp // of two Services with one external IP, the older is owner
		meta.Annotations = maps.Clone(o.Annotations)
		delete(meta.Annotations, corev1.LastAppliedConfigAnnotation)
		return &corev1.Service{ObjectMeta: meta, Spec: o.Spec, Status: corev1.ServiceStatus{LoadBalancer: o.Status.LoadBalancer,
			Conditions: loadBalancers(o.Status.Conditions)}}, nil
	case *discoveryv1.EndpointSlice:
		meta := trimMetadata(o)
		if ofHeadless(o) {
			meta.Labels = map[string]string{discoveryv1.LabelServiceName: o.Labels[discoveryv1.LabelServiceName],
				corev1.IsHeadlessService: ""}
			return &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: o.AddressType, Ports: o.Ports,
				Endpoints: nameFields(o.Endpoints)}, nil
		}
		meta.Labels, meta.Annotations = o.Labels, o.Annotations // an annotation holds the time at which the change was triggered
		return &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: o.AddressType, Ports: o.Ports,
			Endpoints: trimEndpoints(o.Endpoints)}, nil
	case *networkingv1.ServiceCIDR:
		return &networkingv1.ServiceCIDR{ObjectMeta: trimMetadata(o), Spec: o.Spec, Status: o.Status}, nil
	case *corev1.Node:
		meta := trimMetadata(o)
		meta.Labels, meta.CreationTimestamp = o.Labels, o.CreationTimestamp // of two with one subnet or address, the older is owner
		for _, name := range []string{clusterconfig.UnderlayAnnotation, clusterconfig.WireGuardAnnotation,
			clusterconfig.BackendAnnotation} {
			if v, ok := o.Annotations[name]; ok {
				metav1.SetMetaDataAnnotation(&meta, name, v)
			}
		}
		return &corev1.Node{
			ObjectMeta: meta,
			Spec:       corev1.NodeSpec{PodCIDR: o.Spec.PodCIDR, PodCIDRs: o.Spec.PodCIDRs, Unschedulable: o.Spec.Unschedulable},
			Status:     corev1.NodeStatus{Addresses: o.Status.Addresses, Conditions: readyCondition(o.Status.Conditions)},
		}, nil
	case *corev1.Pod:
		return trimPod(o), nil
	case *corev1.Namespace:
		meta := trimMetadata(o)
		meta.Labels = o.Labels
		return &corev1.Namespace{ObjectMeta: meta}, nil
	case *networkingv1.NetworkPolicy:
		return &networkingv1.NetworkPolicy{ObjectMeta: trimMetadata(o), Spec: o.Spec}, nil
	}
	return obj, nil // cache.DeletedFinalStateUnknown
}

// readyCondition returns the Ready condition of a node, without its reason.
func readyCondition(all []corev1.NodeCondition) []corev1.NodeCondition {
	for i := range all {
		if all[i].Type == corev1.NodeReady {
			return []corev1.NodeCondition{{Type: corev1.NodeReady, Status: all[i].Status}}
		}
	}
	return nil
}

// trimMetadata returns the metadata that a cache needs of every object, and the time of the object's deletion.
func trimMetadata(o metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(),
		DeletionTimestamp: o.GetDeletionTimestamp(),
	}
}

func trimEndpoints(all []discoveryv1.Endpoint) []discoveryv1.Endpoint {
	out := make([]discoveryv1.Endpoint, 0, len(all))
	for i := range all {
		e := &all[i]
		out = append(out, discoveryv1.Endpoint{
			Addresses: e.Addresses, Conditions: e.Conditions, Hostname: e.Hostname, NodeName: e.NodeName, Zone: e.Zone, Hints: e.Hints,
		})
	}
	return out
}

// nameFields returns the endpoints of a headless Service with the fields from which names follow.
func nameFields(all []discoveryv1.Endpoint) []discoveryv1.Endpoint {
	out := make([]discoveryv1.Endpoint, 0, len(all))
	for i := range all {
		e := &all[i]
		out = append(out, discoveryv1.Endpoint{Addresses: e.Addresses,
			Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}, Hostname: e.Hostname})
	}
	return out
}

// trimPod returns a pod with the fields that a NetworkPolicy can select or name: labels, addresses, its node, and the
// names of its ports.
func trimPod(o *corev1.Pod) *corev1.Pod {
	meta := trimMetadata(o)
	meta.Labels = o.Labels
	if static, ok := o.Annotations[corev1.MirrorPodAnnotationKey]; ok { // the name by which its node knows a static pod
		meta.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: static}
	}
	out := &corev1.Pod{
		ObjectMeta: meta,
		Spec:       corev1.PodSpec{NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs},
	}
	for _, c := range slices.Concat(o.Spec.InitContainers, o.Spec.Containers) { // a sidecar is an init container
		var named []corev1.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				named = append(named, corev1.ContainerPort{Name: p.Name, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
			}
		}
		if named != nil {
			out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Ports: named})
		}
	}
	return out
}

// loadBalancers returns the conditions that say which ports a Service has at nodes' addresses (loadbalancer.Held).
func loadBalancers(all []metav1.Condition) []metav1.Condition {
	var out []metav1.Condition
	for _, c := range all {
		switch c.Type {
		case loadbalancer.Condition:
			out = append(out, metav1.Condition{Type: c.Type, Status: c.Status})
		case loadbalancer.Kept:
			out = append(out, metav1.Condition{Type: c.Type, Status: c.Status, Message: c.Message})
		}
	}
	return out
}
