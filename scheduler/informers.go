// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/scheduling"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// termInformers is the term's shared informers, without finished pods, whose requests the scheduler would count as
// used. Upstream lists pods with a field selector for that. The controllers cannot share such an informer, so each pod
// would be held and decoded twice. Here finished pods are left out of the shared objects.
type termInformers struct {
	informers.SharedInformerFactory

	mu sync.Mutex
	// used are the informers that the scheduler requested. It waits for these only. Others, of the controllers, may
	// never sync, since their API may be disabled.
	used map[string]cache.SharedIndexInformer
}

func newInformers(shared informers.SharedInformerFactory) *termInformers {
	return &termInformers{SharedInformerFactory: shared, used: map[string]cache.SharedIndexInformer{}}
}

// InformerFor returns an informer. Every typed accessor of the groups below calls it.
func (f *termInformers) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	informer := f.SharedInformerFactory.InformerFor(obj, newFunc)
	if _, ok := obj.(*corev1.Pod); ok {
		informer = newUnfinishedPods(informer)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used[fmt.Sprintf("%T", obj)] = informer
	return informer
}

// The groups that the scheduler and its plugins read.

func (f *termInformers) Apps() apps.Interface     { return apps.New(f, metav1.NamespaceAll, nil) }
func (f *termInformers) Core() core.Interface     { return core.New(f, metav1.NamespaceAll, nil) }
func (f *termInformers) Policy() policy.Interface { return policy.New(f, metav1.NamespaceAll, nil) }
func (f *termInformers) Resource() resource.Interface {
	return resource.New(f, metav1.NamespaceAll, nil)
}
func (f *termInformers) Storage() storage.Interface { return storage.New(f, metav1.NamespaceAll, nil) }
func (f *termInformers) Scheduling() scheduling.Interface {
	return scheduling.New(f, metav1.NamespaceAll, nil)
}

// waitSynced returns true once all objects that the scheduler reads have been listed. It returns false when ctx ends
// before.
func (f *termInformers) waitSynced(ctx context.Context) bool {
	f.mu.Lock()
	used := slices.Collect(maps.Values(f.used))
	f.mu.Unlock()
	return cache.WaitFor(ctx, "the scheduler's informers", convert.Slice(used, cache.SharedIndexInformer.HasSyncedChecker)...)
}
