// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/controllers/definition"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// managerName is the field manager of writes to HelmCharts.
const managerName = "coracle-helm"

// objects are the cluster's HelmCharts and HelmChartConfigs. They have informers of their own, since these cannot list
// before the kinds are defined.
type objects struct {
	client          dynamic.Interface
	charts, configs cache.SharedIndexInformer
	synced          []cache.InformerSynced
}

func newObjects(client dynamic.Interface, changed func()) (*objects, error) {
	o := &objects{client: client}
	for _, k := range []struct {
		to   *cache.SharedIndexInformer
		kind definition.Kind
	}{{&o.charts, kinds.Charts()}, {&o.configs, kinds.Configs()}} {
		i := dynamicinformer.NewFilteredDynamicInformer(client, k.kind.Resource, metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer()
		if err := i.SetTransform(slimObject); err != nil {
			return nil, err
		}
		synced, err := netinformers.Follow(func(any) { changed() }, netinformers.Source{Informer: i})
		if err != nil {
			return nil, err
		}
		*k.to, o.synced = i, append(o.synced, synced...)
	}
	return o, nil
}

// slimObject removes large fields of an object that are read only when they are needed: a chart's archive, which a
// digest replaces, and copies of it.
func slimObject(obj any) (any, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj, nil
	}
	u = u.DeepCopy() // the caller may keep the object
	u.SetManagedFields(nil)
	if a := u.GetAnnotations(); a[corev1.LastAppliedConfigAnnotation] != "" {
		a = maps.Clone(a)
		delete(a, corev1.LastAppliedConfigAnnotation)
		u.SetAnnotations(a)
	}
	if content, found, err := unstructured.NestedString(u.Object, "spec", "chartContent"); err == nil && found {
		_ = unstructured.SetNestedField(u.Object, digest(content), "spec", "chartContent") // spec is a map, since the field was found
	}
	return u, nil
}

// run watches the objects until ctx is done.
func (o *objects) run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { o.charts.RunWithContext(ctx) })
	both.Go(func() { o.configs.RunWithContext(ctx) })
	both.Wait()
}

// chartList holds the HelmCharts and HelmChartConfigs of the cluster.
type chartList struct {
	charts  []*kinds.HelmChart // ordered by name
	configs map[types.NamespacedName]*kinds.HelmChartConfig
	// broken are the reasons for which charts or their configs cannot be read, by chart. The API server has validated
	// the objects by the definition. But the definition may be another program's, and permits numbers that are too
	// large and invalid durations.
	broken map[types.NamespacedName]string
}

// listCharts returns the cluster's charts, with their configs.
func (o *objects) listCharts() chartList {
	f := chartList{configs: map[types.NamespacedName]*kinds.HelmChartConfig{}, broken: map[types.NamespacedName]string{}}
	for _, item := range o.configs.GetStore().List() {
		u, ok := item.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		name := types.NamespacedName{Namespace: u.GetNamespace(), Name: u.GetName()}
		config, err := kinds.ConfigFrom(u)
		if err != nil {
			f.broken[name] = err.Error()
			continue
		}
		f.configs[name] = config
	}
	for _, item := range o.charts.GetStore().List() {
		u, ok := item.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		chart, err := kinds.ChartFrom(u)
		if err != nil {
			chart = kinds.Outline(u)
			f.broken[nameOf(chart)] = err.Error()
		}
		f.charts = append(f.charts, chart)
	}
	slices.SortFunc(f.charts, func(a, b *kinds.HelmChart) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return f
}

// readChart reads a chart with its archive from the API server.
func (o *objects) readChart(ctx context.Context, c *kinds.HelmChart) (*kinds.HelmChart, error) {
	u, err := o.client.Resource(kinds.Charts().Resource).Namespace(c.Namespace).Get(ctx, c.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the HelmChart %s/%s: %w", c.Namespace, c.Name, err)
	}
	return kinds.ChartFrom(u)
}

// patch changes a chart, unless it was replaced by another one with the same name.
func (o *objects) patch(ctx context.Context, c *kinds.HelmChart, subresource string, change map[string]any) error {
	change["metadata"] = mergeMaps(change["metadata"], map[string]any{"uid": c.UID})
	text, err := json.Marshal(change)
	if err != nil {
		return err
	}
	var sub []string
	if subresource != "" {
		sub = []string{subresource}
	}
	_, err = o.client.Resource(kinds.Charts().Resource).Namespace(c.Namespace).Patch(ctx, c.Name, types.MergePatchType, text,
		metav1.PatchOptions{FieldManager: managerName}, sub...)
	if apierrors.IsNotFound(err) {
		return nil // the chart was deleted
	}
	if err != nil {
		return fmt.Errorf("writing the HelmChart %s/%s: %w", c.Namespace, c.Name, err)
	}
	return nil
}

func mergeMaps(a any, b map[string]any) map[string]any {
	out := maps.Clone(b)
	if m, ok := a.(map[string]any); ok {
		maps.Copy(out, m)
	}
	return out
}

// finalizers sets a chart's finalizers. The resource version keeps finalizers that other clients have added meanwhile.
func (o *objects) finalizers(ctx context.Context, c *kinds.HelmChart, want []string) error {
	if want == nil {
		want = []string{}
	}
	return o.patch(ctx, c, "", map[string]any{"metadata": map[string]any{"finalizers": want, "resourceVersion": c.ResourceVersion}})
}

func (o *objects) addFinalizer(ctx context.Context, c *kinds.HelmChart) error {
	return o.finalizers(ctx, c, append(slices.Clone(c.Finalizers), Finalizer))
}

func (o *objects) removeFinalizers(ctx context.Context, c *kinds.HelmChart, which ...string) error {
	return o.finalizers(ctx, c, slices.DeleteFunc(slices.Clone(c.Finalizers), func(f string) bool { return slices.Contains(which, f) }))
}

func (o *objects) status(ctx context.Context, c *kinds.HelmChart, s *kinds.Status) error {
	return o.patch(ctx, c, "status", map[string]any{"status": map[string]any{
		"revision": s.Revision, "configHash": s.ConfigHash, "reconciled": s.Reconciled, "chartDigest": s.ChartDigest,
		"conditions": s.Conditions,
	}})
}

// releaseCharts removes the finalizer from all charts, so that they can be deleted, in a cluster with this controller
// disabled. It removes the kinds unless there are objects.
func (c *Controller) releaseCharts(ctx context.Context) {
	o := &objects{client: c.o.Dynamic}
	definition.UntilDone(ctx, c.log, "Helm charts cannot be let go of yet; it is tried again", func() error {
		there, err := kinds.Charts().Defined(ctx, c.o.Dynamic)
		if err != nil || !there {
			return err
		}
		all, err := c.o.Dynamic.Resource(kinds.Charts().Resource).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range all.Items {
			chart := kinds.Outline(&all.Items[i])
			if slices.Contains(chart.Finalizers, Finalizer) {
				if err := o.removeFinalizers(ctx, chart, Finalizer); err != nil {
					return err
				}
			}
		}
		for _, k := range []definition.Kind{kinds.Charts(), kinds.Configs()} {
			left, err := k.Remove(ctx, c.o.Dynamic)
			if err != nil {
				return err
			}
			if left > 0 {
				c.log.Info("the Helm controller is disabled, and a definition stays for the sake of the objects that there are", "kind",
					k.Resource.Resource, "objects", left)
			}
		}
		return nil
	})
}

// namespaceOf returns whether a namespace is deleted, or is being deleted.
func (c *Controller) namespaceOf(name string) (deleted, ending bool) {
	ns, err := c.namespaces.Get(name)
	if apierrors.IsNotFound(err) {
		return true, false
	}
	return false, err == nil && ns.DeletionTimestamp != nil
}

// requestTimeout limits each request of the loop itself.
const requestTimeout = 20 * time.Second
