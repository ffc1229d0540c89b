// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/url"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// externalNames resolves Services of type ExternalName to their name, as upstream does where the aggregator routes to
// cluster IPs. Here the aggregator routes to endpoints, so that a server needs no Service proxy, and upstream then
// refuses a Service that has no endpoints. An APIService has no other way to name an API server outside of the cluster.
// Admission webhooks do not use this resolver: upstream makes theirs itself, and they can name a URL.
type externalNames struct {
	webhook.ServiceResolver
	services corelisters.ServiceLister
}

func (e externalNames) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	if s, err := e.services.Services(namespace).Get(name); err == nil && s.Spec.Type == corev1.ServiceTypeExternalName {
		return proxy.ResolveCluster(e.services, namespace, name, port)
	}
	return e.ServiceResolver.ResolveEndpoint(namespace, name, port)
}
