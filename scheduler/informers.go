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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	upstream "k8s.io/kubernetes/pkg/scheduler"
)

// podsApart is the term's shared informers with pods of its own. The scheduler must not see pods that have finished
// (it would count what they asked for as used), so upstream lists pods with a field selector, which the controllers
// cannot share. Everything else is the same objects.
type podsApart struct {
	informers.SharedInformerFactory
	pods informers.SharedInformerFactory // holds the pod informer and nothing else; the caller starts and stops it

	mu sync.Mutex
	// used are the informers that the scheduler asked for: it waits for these and not for the controllers' others,
	// of which one may never sync (its API may be switched off).
	used map[string]cache.SharedIndexInformer
}

func newInformers(shared informers.SharedInformerFactory, client kubernetes.Interface) *podsApart {
	return &podsApart{
		SharedInformerFactory: shared,
		pods:                  upstream.NewInformerFactory(client, 0, nil),
		used:                  map[string]cache.SharedIndexInformer{},
	}
}

// InformerFor is what every typed accessor of the groups below comes down to.
func (f *podsApart) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	factory := f.SharedInformerFactory
	if _, ok := obj.(*corev1.Pod); ok {
		factory = f.pods
	}
	informer := factory.InformerFor(obj, newFunc)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used[fmt.Sprintf("%T", obj)] = informer
	return informer
}

// The groups that the scheduler and its plugins read.

func (f *podsApart) Apps() apps.Interface         { return apps.New(f, metav1.NamespaceAll, nil) }
func (f *podsApart) Core() core.Interface         { return core.New(f, metav1.NamespaceAll, nil) }
func (f *podsApart) Policy() policy.Interface     { return policy.New(f, metav1.NamespaceAll, nil) }
func (f *podsApart) Resource() resource.Interface { return resource.New(f, metav1.NamespaceAll, nil) }
func (f *podsApart) Storage() storage.Interface   { return storage.New(f, metav1.NamespaceAll, nil) }
func (f *podsApart) Scheduling() scheduling.Interface {
	return scheduling.New(f, metav1.NamespaceAll, nil)
}

// waitSynced returns true once everything that the scheduler reads has been listed, false when ctx ended before.
func (f *podsApart) waitSynced(ctx context.Context) bool {
	f.mu.Lock()
	used := slices.Collect(maps.Values(f.used))
	f.mu.Unlock()
	checks := make([]cache.DoneChecker, len(used))
	for i, informer := range used {
		checks[i] = informer.HasSyncedChecker()
	}
	return cache.WaitFor(ctx, "the scheduler's informers", checks...)
}
