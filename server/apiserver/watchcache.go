// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/discovery"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/apis/node"
	"k8s.io/kubernetes/pkg/apis/storage"
)

// cachedResources are the resources of which every node watches all objects, or all those of its own pods.
var cachedResources = []schema.GroupResource{
	core.Resource("pods"), core.Resource("nodes"), core.Resource("services"), core.Resource("namespaces"),
	discovery.Resource("endpointslices"), networking.Resource("networkpolicies"), networking.Resource("servicecidrs"),
	storage.Resource("csidrivers"), node.Resource("runtimeclasses"), certificates.Resource("podcertificaterequests"),
}

// cachingStorage puts upstream's watch cache in front of the store for cachedResources. The watches of all other
// resources are read from the store and are whole (watchWhole).
//
// Without a cache every watch decodes every event of its resource, and decrypts it, before it can tell whether its
// client wants it: with a thousand kubelets that is a thousand decodings of each pod's every change. The cache decodes
// once, finds the watches of one node's pods by an index, and encodes once for all. It holds every object of the
// resource in memory (ADR 0072).
type cachingStorage struct{ apigeneric.RESTOptionsGetter }

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (g cachingStorage) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err != nil {
		return o, err
	}
	o.Decorator = wholeStorage
	if slices.Contains(cachedResources, resource) {
		o.Decorator = registry.StorageWithCacher()
	}
	return o, nil
}
