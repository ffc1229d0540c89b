// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"sync/atomic"

	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	resourceclaimmetrics "k8s.io/kubernetes/pkg/controller/resourceclaim/metrics"
	attachdetachcache "k8s.io/kubernetes/pkg/controller/volume/attachdetach/cache"
	attachdetachmetrics "k8s.io/kubernetes/pkg/controller/volume/attachdetach/metrics"
	volumemetrics "k8s.io/kubernetes/pkg/controller/volume/persistentvolume/metrics"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csimigration"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// Three of upstream's controllers register, once per process, a metrics collector that reads the informers of the first
// term. It would keep that term's objects in memory and report them as current. This file makes those registrations
// before any controller does, with stores of the running term.
//
// The cost is some alpha metrics: attachdetach_controller_total_volumes, storage_count_attachable_volumes_in_use and
// dynamic_resource_allocation_resource_claims are not reported, and pv_collector_total_pv_count has no plugin names.

// runningTerm is the term whose objects the collectors count. It is nil between terms. It is global because upstream's
// registry is.
var runningTerm atomic.Pointer[term.Term]

// countFor makes the collectors count a term's objects, until done is called.
func countFor(t *term.Term) (done func()) {
	plugins := &volume.VolumePluginMgr{}
	_ = plugins.InitPlugins(nil, nil, nil) // there is no plugin that could fail
	noPods := corelisters.NewPodLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil))
	attachdetachmetrics.Register(nil, nil, noPods,
		attachdetachcache.NewActualStateOfWorld(plugins), attachdetachcache.NewDesiredStateOfWorld(plugins), plugins,
		csimigration.PluginManager{}, nil)
	resourceclaimmetrics.RegisterMetrics(nil)
	volumemetrics.Register(
		countedStore(func(t *term.Term) cache.Store {
			return t.Informers.Core().V1().PersistentVolumes().Informer().GetStore()
		}),
		countedStore(func(t *term.Term) cache.Store {
			return t.Informers.Core().V1().PersistentVolumeClaims().Informer().GetStore()
		}),
		plugins)
	runningTerm.Store(t)
	return func() { runningTerm.CompareAndSwap(t, nil) }
}

// countedStore lists a store of the running term. Between terms its list is empty.
type countedStore func(*term.Term) cache.Store

func (c countedStore) List() []any {
	if t := runningTerm.Load(); t != nil {
		return c(t).List()
	}
	return nil
}
