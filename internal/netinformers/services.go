// SPDX-License-Identifier: Apache-2.0

package netinformers

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// ServiceInformers are there with Options.Services. Their handlers hear only of what a Service proxy serves; the caches
// below hold the rest, too, where Options.Names asks for it.
type ServiceInformers struct {
	Services       coreinformers.ServiceInformer
	EndpointSlices discoveryinformers.EndpointSliceInformer
	ServiceCIDRs   networkinginformers.ServiceCIDRInformer
}

// Services returns an error when the options did not ask for Services.
func (i *Informers) Services() (ServiceInformers, error) {
	if !i.o.Services {
		return ServiceInformers{}, errors.New("netinformers: Services are not watched: set Options.Services")
	}
	return ServiceInformers{
		Services:       servedServices{i.factory.Core().V1().Services()},
		EndpointSlices: servedSlices{i.factory.Discovery().V1().EndpointSlices()},
		ServiceCIDRs:   i.factory.Networking().V1().ServiceCIDRs(),
	}, nil
}

// NameInformers are there with Options.Names. Of headless Services and their EndpointSlices the caches hold what names
// follow from, and no more.
type NameInformers struct {
	Services       coreinformers.ServiceInformer
	EndpointSlices discoveryinformers.EndpointSliceInformer
	Namespaces     coreinformers.NamespaceInformer
}

// Names returns an error when the options did not ask for them.
func (i *Informers) Names() (NameInformers, error) {
	if !i.o.Names {
		return NameInformers{}, errors.New("netinformers: what has a name is not watched: set Options.Names")
	}
	return NameInformers{
		Services:       i.factory.Core().V1().Services(),
		EndpointSlices: i.factory.Discovery().V1().EndpointSlices(),
		Namespaces:     i.factory.Core().V1().Namespaces(),
	}, nil
}

// served says whether a Service proxy serves an object: whether the selectors of watchServices would have let it
// through.
func served(obj any) bool {
	switch o := Object(obj).(type) {
	case *corev1.Service:
		_, others := o.Labels[apis.LabelServiceProxyName]
		return !others && !headless(o)
	case *discoveryv1.EndpointSlice:
		return !ofHeadless(o)
	}
	return false
}

func headless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

func ofHeadless(s *discoveryv1.EndpointSlice) bool {
	_, has := s.Labels[corev1.IsHeadlessService]
	return has
}

type servedServices struct{ coreinformers.ServiceInformer }

// Informer implements coreinformers.ServiceInformer.
func (s servedServices) Informer() cache.SharedIndexInformer {
	return Informer{SharedIndexInformer: s.ServiceInformer.Informer(), Shows: served}
}

type servedSlices struct {
	discoveryinformers.EndpointSliceInformer
}

// Informer implements discoveryinformers.EndpointSliceInformer.
func (s servedSlices) Informer() cache.SharedIndexInformer {
	return Informer{SharedIndexInformer: s.EndpointSliceInformer.Informer(), Shows: served}
}
