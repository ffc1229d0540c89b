// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// unfinishedPods is an informer that shows only unfinished pods of an informer of all pods. A pod that succeeds or
// fails is reported as deleted.
type unfinishedPods struct{ netinformers.Informer }

func newUnfinishedPods(all cache.SharedIndexInformer) unfinishedPods {
	return unfinishedPods{netinformers.Informer{SharedIndexInformer: all, Shows: isUnfinished}}
}

// isUnfinished reports whether a pod may still use the resources that it requested. It accepts the objects that
// event handlers get.
func isUnfinished(obj any) bool {
	pod, ok := netinformers.Object(obj).(*corev1.Pod)
	return ok && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// GetStore implements cache.SharedInformer.
func (u unfinishedPods) GetStore() cache.Store { return u.GetIndexer() }

// GetIndexer implements cache.SharedIndexInformer.
func (u unfinishedPods) GetIndexer() cache.Indexer {
	return unfinishedIndexer{u.Informer.GetIndexer()}
}

// unfinishedIndexer is an indexer for readers without finished pods. Only its lists of keys contain all pods.
type unfinishedIndexer struct{ cache.Indexer }

// List implements cache.Store.
func (i unfinishedIndexer) List() []any { return filterUnfinished(i.Indexer.List(), nil) }

// Get implements cache.Store.
func (i unfinishedIndexer) Get(obj any) (any, bool, error) {
	return oneUnfinished(i.Indexer.Get(obj))
}

// GetByKey implements cache.Store.
func (i unfinishedIndexer) GetByKey(key string) (any, bool, error) {
	return oneUnfinished(i.Indexer.GetByKey(key))
}

// Index implements cache.Indexer.
func (i unfinishedIndexer) Index(name string, obj any) ([]any, error) {
	found, err := i.Indexer.Index(name, obj)
	return filterUnfinished(found, err), err
}

// ByIndex implements cache.Indexer.
func (i unfinishedIndexer) ByIndex(name, value string) ([]any, error) {
	found, err := i.Indexer.ByIndex(name, value)
	return filterUnfinished(found, err), err
}

// filterUnfinished removes finished pods from a list that the caller owns.
func filterUnfinished(all []any, err error) []any {
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(obj any) bool { return !isUnfinished(obj) })
}

func oneUnfinished(obj any, exists bool, err error) (any, bool, error) {
	if err != nil || !exists || !isUnfinished(obj) {
		return nil, false, err
	}
	return obj, true, nil
}
