// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/server/pki"
)

// networkPods limits what the network identity, which every node has, can read of a pod: only the fields that the pod
// network, NetworkPolicies and DNS need. It wraps the storage and its caches. So the limit applies to every form of
// request: get, list or watch, any encoding, tables and metadata only.
type networkPods struct{ apigeneric.RESTOptionsGetter }

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (g networkPods) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err != nil || resource != core.Resource("pods") {
		return o, err
	}
	o.Decorator = wrapStorage(o.Decorator, func(s storage.Interface) storage.Interface { return networkPodStorage{s} })
	return o, nil
}

// networkPodStorage is the storage of pods. It passes writes on: the network identity has no right to write pods.
type networkPodStorage struct{ storage.Interface }

func isNetwork(ctx context.Context) bool {
	user, ok := request.UserFrom(ctx)
	return ok && user.GetName() == pki.NetworkUser
}

// Get implements storage.Interface.
func (s networkPodStorage) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	err := s.Interface.Get(ctx, key, opts, out)
	if isNetwork(ctx) {
		reducePods(out)
	}
	return err
}

// GetList implements storage.Interface.
func (s networkPodStorage) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	err := s.Interface.GetList(ctx, key, opts, list)
	if isNetwork(ctx) {
		reducePods(list)
	}
	return err
}

// Watch implements storage.Interface.
func (s networkPodStorage) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	w, err := s.Interface.Watch(ctx, key, opts)
	if err != nil || !isNetwork(ctx) {
		return w, err
	}
	return mapWatch(w, func(e watch.Event) watch.Event {
		if e.Type != watch.Added && e.Type != watch.Modified && e.Type != watch.Deleted {
			return e // an error, or a bookmark, which has no pod
		}
		if timed, ok := e.Object.(storage.WatchEventWithRecordTime); ok {
			e.Object = timed.Unwrap()
		}
		if shared, ok := e.Object.(runtime.CacheableObject); ok { // it has an encoding of the whole pod
			e.Object = shared.GetObject()
		}
		pod, ok := e.Object.(*core.Pod)
		if !ok {
			pod = &core.Pod{}
		}
		e.Object = networkPod(pod) // a new object: other watches use the event's object, too
		return e
	}), nil
}

// reducePods replaces an object that was read by its reduced form. The object itself belongs to the request. A cache
// may hold the objects that it refers to, so these are not changed.
func reducePods(o runtime.Object) {
	switch o := o.(type) {
	case *core.Pod:
		*o = *networkPod(o)
	case *core.PodList:
		for i := range o.Items {
			o.Items[i] = *networkPod(&o.Items[i])
		}
	}
}

// networkPod returns a pod that has only the name, labels, node, addresses, named ports and phase of o. Fields that
// upstream adds are withheld until they are named here. internal/netinformers decides which of these a node caches.
func networkPod(o *core.Pod) *core.Pod {
	out := &core.Pod{
		TypeMeta: o.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels,
			CreationTimestamp: o.CreationTimestamp, DeletionTimestamp: o.DeletionTimestamp,
		},
		Spec: core.PodSpec{NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork, InitContainers: namedPorts(o.Spec.InitContainers),
			Containers: namedPorts(o.Spec.Containers)},
		Status: core.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs},
	}
	if static, ok := o.Annotations[core.MirrorPodAnnotationKey]; ok { // the kubelet's name of it
		out.Annotations = map[string]string{core.MirrorPodAnnotationKey: static}
	}
	return out
}

func namedPorts(all []core.Container) []core.Container {
	var out []core.Container
	for _, c := range all {
		var named []core.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				named = append(named, core.ContainerPort{Name: p.Name, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
			}
		}
		if named != nil {
			out = append(out, core.Container{Ports: named})
		}
	}
	return out
}
