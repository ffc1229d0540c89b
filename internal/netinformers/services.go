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

// ServiceInformers are the informers that exist with Options.Services. Their handlers get only objects that a Service
// proxy serves. With Options.Names, the caches hold other objects, too.
type ServiceInformers struct {
	Services       coreinformers.ServiceInformer
	EndpointSlices discoveryinformers.EndpointSliceInformer
	ServiceCIDRs   networkinginformers.ServiceCIDRInformer
}

// Services returns the informers for Services, and an error when the options did not select Services.
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

// NameInformers are the informers that exist with Options.Names. Of headless Services and their EndpointSlices, the
// caches hold only the fields from which DNS records follow.
type NameInformers struct {
	Services       coreinformers.ServiceInformer
	EndpointSlices discoveryinformers.EndpointSliceInformer
	Namespaces     coreinformers.NamespaceInformer
}

// Names returns the informers for the cluster DNS, and an error when the options did not select names.
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

// isServed says whether a Service proxy serves an object. It selects the same objects as the selectors of
// watchServices.
func isServed(obj any) bool {
	switch o := Object(obj).(type) {
	case *corev1.Service:
		_, others := o.Labels[apis.LabelServiceProxyName]
		return !others && !isHeadless(o)
	case *discoveryv1.EndpointSlice:
		return !ofHeadless(o)
	}
	return false
}

func isHeadless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

func ofHeadless(s *discoveryv1.EndpointSlice) bool {
	_, has := s.Labels[corev1.IsHeadlessService]
	return has
}

type servedServices struct{ coreinformers.ServiceInformer }

// Informer implements coreinformers.ServiceInformer.
func (s servedServices) Informer() cache.SharedIndexInformer {
	return Informer{SharedIndexInformer: s.ServiceInformer.Informer(), Shows: isServed}
}

type servedSlices struct {
	discoveryinformers.EndpointSliceInformer
}

// Informer implements discoveryinformers.EndpointSliceInformer.
func (s servedSlices) Informer() cache.SharedIndexInformer {
	return Informer{SharedIndexInformer: s.EndpointSliceInformer.Informer(), Shows: isServed}
}
