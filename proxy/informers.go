// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// NewClient makes the network identity's client from a kubeconfig file. Certificates that the file refers to by path
// may be renewed in place.
func NewClient(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the network kubeconfig: %w", err)
	}
	config.ContentType = runtime.ContentTypeProtobuf
	config.UserAgent = "coracle-network"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("using the network kubeconfig: %w", err)
	}
	return client, nil
}

// Informers is the one set of caches that the node's network parts read: Services that have an address, EndpointSlices
// that are not headless, ServiceCIDRs, and this node. Objects hold only what those parts use.
type Informers struct {
	informers.SharedInformerFactory
	started atomic.Bool
}

// NewInformers prepares the caches; Run fills them. Back ends have to be made in between.
func NewInformers(client kubernetes.Interface, nodeName string) *Informers {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	// The first to ask a factory for a type decides how it is listed: every later `factory.Core().V1().Services()`
	// shares these.
	indexers := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
	f.InformerFor(&corev1.Service{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredServiceInformer(c, metav1.NamespaceAll, resync, indexers, func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + apis.LabelServiceProxyName
			o.FieldSelector = fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone).String()
		})
	})
	f.InformerFor(&discoveryv1.EndpointSlice{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return discoveryinformers.NewFilteredEndpointSliceInformer(c, metav1.NamespaceAll, resync, indexers, func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + corev1.IsHeadlessService
		})
	})
	f.InformerFor(&corev1.Node{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredNodeInformer(c, resync, indexers, func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName).String()
		})
	})
	f.Networking().V1().ServiceCIDRs().Informer()
	return &Informers{SharedInformerFactory: f}
}

// Run fills the caches and follows the API until ctx is done; then it waits for the informers to end.
func (i *Informers) Run(ctx context.Context) error {
	i.started.Store(true)
	i.Start(ctx.Done())
	<-ctx.Done()
	i.Shutdown()
	return nil
}

// trim drops what no network part reads.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
		m.SetOwnerReferences(nil)
		m.SetFinalizers(nil)
	}
	switch o := obj.(type) {
	case *corev1.Service:
		delete(o.Annotations, corev1.LastAppliedConfigAnnotation)
	case *discoveryv1.EndpointSlice:
		for i := range o.Endpoints {
			o.Endpoints[i].TargetRef = nil
		}
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels},
			Spec:       corev1.NodeSpec{PodCIDR: o.Spec.PodCIDR, PodCIDRs: o.Spec.PodCIDRs, Unschedulable: o.Spec.Unschedulable},
			Status:     corev1.NodeStatus{Addresses: o.Status.Addresses},
		}, nil
	}
	return obj, nil
}
