// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// Helm's labels on its records of a release, which are a Secret or a ConfigMap for each revision.
const (
	labelOwner, ownerHelm = "owner", "helm"
	labelRelease          = "name"
	labelRevision         = "version"
	labelStatus           = "status"
)

func resourceOf(configMap bool) schema.GroupVersionResource {
	if configMap {
		return schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	}
	return schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
}

// watches report changes of releases and of objects that charts refer to. They watch metadata only, so that the data of
// Secrets is not held in memory. The changed objects are read when they are needed.
type watches struct {
	client metadata.Interface
	wake   func()

	running  map[string]context.CancelFunc
	informed sync.WaitGroup

	mu       sync.Mutex
	refs     map[reference]bool            // changed since the last call of changed
	releases map[types.NamespacedName]bool // the same
}

func newWatches(client metadata.Interface, poke func()) *watches {
	return &watches{client: client, wake: poke, running: map[string]context.CancelFunc{}, refs: map[reference]bool{},
		releases: map[types.NamespacedName]bool{}}
}

// setWatched begins to watch the objects of refs, and the releases that are stored in Secrets or ConfigMaps. It ends
// other watches.
func (w *watches) setWatched(ctx context.Context, refs map[reference]bool, secrets, configMaps bool) {
	kept := map[string]bool{}
	begin := func(key string, configMap bool, namespace string, choose func(*metav1.ListOptions), changed func(metav1.Object)) {
		kept[key] = true
		if w.running[key] != nil {
			return
		}
		watch, cancel := context.WithCancel(ctx)
		w.running[key] = cancel
		w.watch(watch, configMap, namespace, choose, changed)
	}
	for ref := range refs {
		begin(fmt.Sprint("reference ", ref), ref.configMap, ref.namespace,
			func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector("metadata.name", ref.name).String()
			},
			func(metav1.Object) { w.refs[ref] = true })
	}
	for _, configMap := range []bool{false, true} {
		if configMap && configMaps || !configMap && secrets {
			begin(fmt.Sprint("releases ", configMap), configMap, metav1.NamespaceAll,
				func(o *metav1.ListOptions) { o.LabelSelector = labels.Set{labelOwner: ownerHelm}.String() },
				func(o metav1.Object) {
					w.releases[types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[labelRelease]}] = true
				})
		}
	}
	for key, cancel := range w.running {
		if !kept[key] {
			cancel()
			delete(w.running, key)
		}
	}
}

// watch calls changed, with mu held, for each object that changes.
func (w *watches) watch(ctx context.Context, configMap bool, namespace string, choose func(*metav1.ListOptions),
	changed func(metav1.Object)) {
	i := metadatainformer.NewFilteredMetadataInformer(w.client, resourceOf(configMap), namespace, 0, cache.Indexers{}, choose).Informer()
	heard := netinformers.Source{}.Handler(func(obj any) {
		o, ok := obj.(metav1.Object)
		if !ok {
			return
		}
		w.mu.Lock()
		changed(o)
		w.mu.Unlock()
		w.wake()
	})
	_ = i.SetTransform(stripObject) // these two fail only on an informer that runs
	_, _ = i.AddEventHandler(heard)
	w.informed.Go(func() { i.RunWithContext(ctx) })
}

// stripObject removes everything from an object except its name, its labels and its versions.
func stripObject(obj any) (any, error) {
	if o, ok := obj.(*metav1.PartialObjectMetadata); ok {
		return &metav1.PartialObjectMetadata{TypeMeta: o.TypeMeta, ObjectMeta: metav1.ObjectMeta{
			Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels,
		}}, nil
	}
	return obj, nil
}

// changed returns the changes since the last call.
func (w *watches) changed() (refs map[reference]bool, releases map[types.NamespacedName]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	refs, releases = w.refs, w.releases
	w.refs, w.releases = map[reference]bool{}, map[types.NamespacedName]bool{}
	return refs, releases
}

// stop ends all watches and waits for them.
func (w *watches) stop() {
	for _, cancel := range w.running {
		cancel()
	}
	w.informed.Wait()
}

func (w *watches) release(ctx context.Context, driver string, of types.NamespacedName) (Release, error) {
	list, err := w.client.Resource(resourceOf(driver == "configmap")).Namespace(of.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{labelOwner: ownerHelm, labelRelease: of.Name}.String(),
	})
	if err != nil {
		return Release{}, fmt.Errorf("looking for the release %s: %w", of, err)
	}
	var out Release
	for i := range list.Items {
		l := list.Items[i].Labels
		if s := l[labelStatus]; s == deployed || s == "superseded" {
			out.Deployed = true
		}
		if n, err := strconv.ParseInt(l[labelRevision], 10, 64); err == nil && n > out.Revision {
			out.Revision, out.Status = n, l[labelStatus]
		}
	}
	return out, nil
}
