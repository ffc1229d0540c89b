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

// Three of upstream's controllers register a metrics collector once per process that reads the informers of whichever
// term came first: it would keep that term's objects for good and report them as if they were today's. So we use up
// those registrations before any controller can, with stores that belong to the term that runs, if one does.
//
// What that costs is alpha metrics: attachdetach_controller_total_volumes, storage_count_attachable_volumes_in_use and
// dynamic_resource_allocation_resource_claims are not reported, and pv_collector_total_pv_count knows no plugin names.

// running is the term whose objects the collectors count, nil between terms. Upstream's registry is global, so this is.
var running atomic.Pointer[term.Term]

// countFor makes a term the one that is counted, until the returned function is called.
func countFor(t *term.Term) (done func()) {
	plugins := &volume.VolumePluginMgr{}
	_ = plugins.InitPlugins(nil, nil, nil) // there is no plugin whose initialization could fail
	noPods := corelisters.NewPodLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil))
	attachdetachmetrics.Register(nil, nil, noPods,
		attachdetachcache.NewActualStateOfWorld(plugins), attachdetachcache.NewDesiredStateOfWorld(plugins), plugins,
		csimigration.PluginManager{}, nil)
	resourceclaimmetrics.RegisterMetrics(nil)
	volumemetrics.Register(
		counted(func(t *term.Term) cache.Store {
			return t.Informers.Core().V1().PersistentVolumes().Informer().GetStore()
		}),
		counted(func(t *term.Term) cache.Store {
			return t.Informers.Core().V1().PersistentVolumeClaims().Informer().GetStore()
		}),
		plugins)
	running.Store(t)
	return func() { running.CompareAndSwap(t, nil) }
}

// counted lists a store of the running term.
type counted func(*term.Term) cache.Store

func (c counted) List() []any {
	if t := running.Load(); t != nil {
		return c(t).List()
	}
	return nil
}
