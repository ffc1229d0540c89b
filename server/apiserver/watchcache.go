// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/discovery"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/apis/node"
	storageapi "k8s.io/kubernetes/pkg/apis/storage"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// cachedResources has the resources that every node watches: all objects, or those that belong to its own pods.
var cachedResources = []schema.GroupResource{
	core.Resource("pods"), core.Resource("nodes"), core.Resource("services"), core.Resource("namespaces"),
	discovery.Resource("endpointslices"), networking.Resource("networkpolicies"), networking.Resource("servicecidrs"),
	storageapi.Resource("csidrivers"), node.Resource("runtimeclasses"), certificates.Resource("podcertificaterequests"),
}

// cachingStorage puts upstream's watch cache in front of the store for cachedResources. All other resources have no
// cache: their watches read the store directly, and pass on every event without gaps (watchWhole).
//
// Without a cache every watch decodes and decrypts every event of its resource before it can tell whether its client
// wants the event. With a thousand kubelets each change of a pod is decoded a thousand times. The cache decodes once,
// finds the watches of one node's pods by an index, and encodes once for all. It holds every object of the resource in
// memory (ADR 0072).
type cachingStorage struct{ apigeneric.RESTOptionsGetter }

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (g cachingStorage) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err != nil {
		return o, err
	}
	o.Decorator = wholeStorage
	if slices.Contains(cachedResources, resource) {
		o.Decorator = alignedCacheStorage
	}
	return o, nil
}

// alignedCacheStorage is an apigeneric.StorageDecorator. It does what upstream's registry.StorageWithCacher does, with
// alignedClock.
func alignedCacheStorage(config *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error),
	newObject, newList func() runtime.Object, attributes storage.AttrFunc, triggers storage.IndexerFuncs,
	indexers *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := apigeneric.NewRawStorage(config, newObject, newList, prefix)
	if err != nil {
		return raw, destroy, err
	}
	c, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage: raw, Versioner: storage.APIObjectVersioner{}, GroupResource: config.GroupResource,
		EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix:      prefix, KeyFunc: key, NewFunc: newObject, NewListFunc: newList, GetAttrsFunc: attributes,
		IndexerFuncs: triggers,
		Indexers:     indexers, Codec: config.Codec, Clock: alignedClock{},
	})
	if err != nil {
		destroy()
		return nil, func() {}, fmt.Errorf("making the watch cache of %s: %w", config.GroupResource, err)
	}
	delegator := cacher.NewCacheDelegator(c, raw)
	return delegator, sync.OnceFunc(func() { delegator.Stop(); c.Stop(); destroy() }), nil
}

// alignedClock aligns the timer by which each cache sends bookmarks every 1 to 1.25 s. Ten caches then wake an idle
// processor once a second, not ten times.
type alignedClock struct{ clock.RealClock }

// NewTimer implements clock.Clock.
func (c alignedClock) NewTimer(d time.Duration) clock.Timer {
	return alignedTimer{c.RealClock.NewTimer(alignedDelay(d))}
}

type alignedTimer struct{ clock.Timer }

// Reset implements clock.Timer.
func (t alignedTimer) Reset(d time.Duration) bool { return t.Timer.Reset(alignedDelay(d)) }

// alignedDelay replaces a delay between one and two seconds by the time until the next full second of this process.
func alignedDelay(d time.Duration) time.Duration {
	if d < time.Second || d >= 2*time.Second {
		return d
	}
	return timers.Until(time.Second)
}
