// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// versions are the resource versions of all objects of a resource, by one watch of metadata. It keeps nothing else of
// an object, so that a cluster with thousands of Secrets costs little. The watch begins with the first name that a user
// of versions has (ready).
//
// versions implements cache.TransformingStore, in which a reflector puts what the watch reports.
type versions struct {
	reflector  *cache.Reflector
	running    sync.WaitGroup
	runOnce    sync.Once
	listed     chan struct{} // closed after the first list
	listedOnce sync.Once     // closes listed
	changed    func()        // called after a list, and when an object that a user of versions names has changed

	mu     sync.Mutex
	byName map[types.NamespacedName]string
	names  []func(types.NamespacedName) bool // of each user: whether it names an object. Called with mu held.
}

// newVersions makes the versions of the objects of a resource of the core group that a selector selects.
func newVersions(client metadata.Interface, resource string, which fields.Selector, changed func()) *versions {
	v := &versions{listed: make(chan struct{}), changed: changed}
	from := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = which.String()
			return client.Resource(corev1.SchemeGroupVersion.WithResource(resource)).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = which.String()
			return client.Resource(corev1.SchemeGroupVersion.WithResource(resource)).Watch(ctx, o)
		},
	}, client)
	v.reflector = cache.NewReflectorWithOptions(from, &metav1.PartialObjectMetadata{}, v, cache.ReflectorOptions{})
	return v
}

// ready begins the watch, which ends with ctx, and waits for its list. It returns false if ctx is done.
func (v *versions) ready(ctx context.Context) bool {
	v.runOnce.Do(func() { v.running.Go(func() { v.reflector.RunWithContext(ctx) }) })
	select {
	case <-ctx.Done():
		return false
	case <-v.listed:
		return true
	}
}

// Add, Update and Delete implement cache.ReflectorStore.
func (v *versions) Add(o any) error    { return v.record(o, false) }
func (v *versions) Update(o any) error { return v.record(o, false) }
func (v *versions) Delete(o any) error { return v.record(o, true) }

func (v *versions) record(o any, gone bool) error {
	m, ok := o.(*metav1.PartialObjectMetadata)
	if !ok { // the reflector passes only these
		return nil
	}
	name := nameOf(m)
	v.mu.Lock()
	if gone {
		delete(v.byName, name)
	} else {
		v.byName[name] = m.ResourceVersion
	}
	named := slices.ContainsFunc(v.names, func(has func(types.NamespacedName) bool) bool { return has(name) })
	v.mu.Unlock()
	if named {
		v.changed()
	}
	return nil
}

// Replace implements cache.ReflectorStore. A list comes at the beginning, and after a watch that missed changes.
func (v *versions) Replace(list []any, _ string) error {
	of := make(map[types.NamespacedName]string, len(list))
	for _, o := range list {
		if m, ok := o.(*metav1.PartialObjectMetadata); ok {
			of[nameOf(m)] = m.ResourceVersion
		}
	}
	v.mu.Lock()
	v.byName = of
	v.mu.Unlock()
	v.listedOnce.Do(func() { close(v.listed) })
	v.changed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (v *versions) Resync() error { return nil }

// Transformer implements cache.TransformingStore: while a list arrives, no more is kept of each object than afterwards.
func (v *versions) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if m, ok := o.(*metav1.PartialObjectMetadata); ok {
			return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
				Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion,
			}}, nil
		}
		return o, nil
	}
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
