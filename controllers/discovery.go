// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	memory "k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/restmapper"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/netinformers"
)

const (
	// cacheHoldoff is the time after a change of the API's resources in which no discovery result is cached, since the
	// API server's own view follows a CustomResourceDefinition or APIService with some delay.
	cacheHoldoff = 90 * time.Second
	// refreshInterval limits the age of a cached result when no change was seen.
	refreshInterval = 10 * time.Minute
)

// apiSources are the resources whose changes change what the API serves while it runs. No other resources do.
var apiSources = []schema.GroupVersionResource{
	{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

// discoveryCache caches the list of resources while nothing can have changed it. The garbage collector and the quota
// controller each request it every 30 s, which is some 100 KB of JSON to encode and decode.
type discoveryCache struct {
	now    func() time.Time
	unused func(group string) bool // Options.Unused

	mu      sync.Mutex
	changed time.Time
	cache   map[string]cachedResources
}

type cachedResources struct {
	lists  []*metav1.APIResourceList
	readAt time.Time
}

// newDiscovery makes the term's REST mapper and discovery cache, and resets both when the API's resources change.
func newDiscovery(ctx context.Context, t *term.Term,
	unused func(group string) bool) (*restmapper.DeferredDiscoveryRESTMapper, *discoveryCache, error) {
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(t.Client.Discovery()))
	c := &discoveryCache{now: time.Now, unused: unused, cache: map[string]cachedResources{}}
	c.changed = c.now()
	handler := netinformers.Source{}.Handler(func(any) { c.invalidate() })
	for _, gvr := range apiSources {
		// The garbage collector watches the same two resources, so this needs no further watch.
		if _, err := t.MetadataInformers.ForResource(gvr).Informer().AddEventHandler(handler); err != nil {
			return nil, nil, fmt.Errorf("watch %s: %w", gvr.Resource, err)
		}
	}
	go wait.UntilWithContext(ctx, func(context.Context) {
		if c.unsettled() {
			mapper.Reset()
		}
	}, cacheHoldoff/3)
	return mapper, c, nil
}

func (c *discoveryCache) invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = c.now()
}

// unsettled reports whether the API's resources may have changed lately.
func (c *discoveryCache) unsettled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().Sub(c.changed) < cacheHoldoff
}

// get returns the cached answer to a question, or calls ask. Partial answers are returned and not cached.
func (c *discoveryCache) get(question string, ask func() ([]*metav1.APIResourceList, error)) ([]*metav1.APIResourceList, error) {
	c.mu.Lock()
	kept, ok := c.cache[question]
	valid := ok && kept.readAt.Sub(c.changed) >= cacheHoldoff && c.now().Sub(kept.readAt) < refreshInterval
	c.mu.Unlock()
	if valid {
		return kept.lists, nil
	}
	at := c.now()
	lists, err := ask()
	if err == nil {
		c.mu.Lock()
		c.cache[question] = cachedResources{lists, at}
		c.mu.Unlock()
	}
	return lists, err
}

// cachedDiscovery answers the periodic requests from the shared cache, and sends the others to the server.
type cachedDiscovery struct {
	discovery.DiscoveryInterface
	cache *discoveryCache
}

func (d cachedDiscovery) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	lists, err := d.cache.get("all", d.DiscoveryInterface.ServerPreferredResources)
	return usedGroups(lists, d.cache.unused), err
}

func (d cachedDiscovery) ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error) {
	lists, err := d.cache.get("namespaced", d.DiscoveryInterface.ServerPreferredNamespacedResources)
	return usedGroups(lists, d.cache.unused), err
}

// usedGroups removes groups without objects. A controller that watches or deletes resources has nothing to do
// there, and the API server need not compile their rules.
func usedGroups(lists []*metav1.APIResourceList, unused func(group string) bool) []*metav1.APIResourceList {
	if unused == nil {
		return lists
	}
	out := make([]*metav1.APIResourceList, 0, len(lists))
	for _, l := range lists {
		if group, _, ok := strings.Cut(l.GroupVersion, "/"); !ok || !unused(group) {
			out = append(out, l)
		}
	}
	return out
}

// newGraphBuilder returns nil when the garbage collector is disabled.
func newGraphBuilder(ctx context.Context, cc app.ControllerContext, t *term.Term) *garbagecollector.GraphBuilder {
	o := cc.ComponentConfig.GarbageCollectorController
	if !o.EnableGarbageCollector || !cc.IsControllerEnabled(app.NewControllerDescriptors()[names.GarbageCollectorController]) {
		return nil
	}
	ignored := map[schema.GroupResource]struct{}{}
	for _, r := range o.GCIgnoredResources {
		ignored[schema.GroupResource{Group: r.Group, Resource: r.Resource}] = struct{}{}
	}
	return garbagecollector.NewDependencyGraphBuilder(ctx, t.Metadata, cc.RESTMapper, ignored,
		cc.ObjectOrMetadataInformerFactory, cc.InformersStarted)
}
