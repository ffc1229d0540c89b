// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/testenv"
)

const owners = `"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]`

// alikeKinds are kinds of which many objects are alike, each with one but for its name: those whose storage fills in what is missing when it is read, that have several versions or quantities, or lists that somebody may sort.
var alikeKinds = []struct {
	resource schema.GroupVersionResource
	also     string // another version's path
	object   string
}{
	{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "", `{"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"app": "web"}, ` + owners + `},
		"spec": {"automountServiceAccountToken": false, "nodeName": "one", "containers": [{"name": "web", "image": "web", "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
			"resources": {"requests": {"cpu": "100m", "memory": "1000Mi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}}, "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
			"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1024Mi"}}], "tolerations": [{"key": "z", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "", `{"apiVersion": "v1", "kind": "Service", "metadata": {"labels": {"app": "web"}}, "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}, "", `{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"labels": {"app": "web"}},
		"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}, "dataSource": {"kind": "PersistentVolumeClaim", "name": "other"}}}`},
	{schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}, "/apis/autoscaling/v1", `{"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"labels": {"app": "web"}, ` + owners + `},
		"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "metrics": [{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1500m"}}}]}}`},
	{schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}, "", `{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"labels": {"app": "web"}, ` + owners + `},
		"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.9", "192.0.2.1"]}, {"addresses": ["192.0.2.5"]}], "ports": [{"port": 80}]}`},
}

// TestAlikeObjectsStayApart: objects that share memory in a watch cache are changed and read in every way at once, and each is in the end what its writer was told.
func TestAlikeObjectsStayApart(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.CacheFrom = 1
	o.ExtraArgs = append(o.ExtraArgs, "disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection")
	s := f.start(t, o)
	c, d := client(t, s.admin()), dynamicClient(t, s)
	ns := namespace(t, c)
	seed := int64(testenv.Seed(t))
	for i, kind := range alikeKinds {
		t.Run(kind.resource.Resource, func(t *testing.T) {
			t.Parallel()
			a := &alikeObjects{t: t, d: d.Resource(kind.resource).Namespace(ns), c: c, like: object(t, kind.object), want: map[string]*unstructured.Unstructured{},
				watched: dynamicinformer.NewFilteredDynamicInformer(d, kind.resource, ns, 0, cache.Indexers{}, nil).Informer()}
			groups := "/apis/" + kind.resource.Group
			if kind.resource.Group == "" {
				groups = "/api"
			}
			a.paths = []string{fmt.Sprintf("%s/%s/namespaces/%s/%s", groups, kind.resource.Version, ns, kind.resource.Resource)}
			if kind.also != "" {
				a.paths = append(a.paths, fmt.Sprintf("%s/namespaces/%s/%s", kind.also, ns, kind.resource.Resource))
			}
			a.run(seed + int64(i)*1000)
		})
	}
}

// alikeObjects are objects of one kind.
type alikeObjects struct {
	t     *testing.T
	d     dynamic.ResourceInterface
	c     *kubernetes.Clientset
	paths []string
	like  *unstructured.Unstructured

	watched cache.SharedIndexInformer

	mu   sync.Mutex
	want map[string]*unstructured.Unstructured // as their writers were told
}

func (a *alikeObjects) run(seed int64) {
	t := a.t
	var watching, writing, reading sync.WaitGroup
	watched, stop := context.WithCancel(t.Context())
	watching.Go(func() { a.watched.RunWithContext(watched) })
	defer watching.Wait()
	defer stop()
	written, end := context.WithCancel(t.Context())
	for i := range 3 {
		writing.Go(func() { a.write(i, rand.New(rand.NewSource(seed+int64(i)))) })
		reading.Go(func() { a.read(written, rand.New(rand.NewSource(seed+100+int64(i)))) })
	}
	writing.Wait()
	end()
	reading.Wait()
	for what, o := range map[string]metav1.ListOptions{"of the cache": {ResourceVersion: "0"}, "of now": {}, "in pages": {Limit: 2}} {
		eventually(t, "a list "+what, func() error {
			got, more := map[string]*unstructured.Unstructured{}, o
			for {
				list, err := a.d.List(t.Context(), more)
				if err != nil {
					return err
				}
				for _, item := range list.Items {
					got[item.GetName()] = &item
				}
				if more.Continue = list.GetContinue(); more.Continue == "" {
					return a.differs(got)
				}
			}
		})
	}
	eventually(t, "a watch", func() error {
		seen := map[string]*unstructured.Unstructured{}
		for _, o := range a.watched.GetStore().List() {
			seen[o.(*unstructured.Unstructured).GetName()] = o.(*unstructured.Unstructured)
		}
		return a.differs(seen)
	})
	for name, want := range a.want {
		got, err := a.d.Get(t.Context(), name, metav1.GetOptions{ResourceVersion: "0"})
		if err != nil || !reflect.DeepEqual(got.Object, want.Object) {
			t.Errorf("of the cache: %v\n%v\nwant\n%v", err, got, want)
		}
	}
}

// differs says how objects differ from those that were written.
func (a *alikeObjects) differs(got map[string]*unstructured.Unstructured) error {
	var errs []error
	for name := range got {
		if a.want[name] == nil {
			errs = append(errs, fmt.Errorf("%s should be gone", name))
		}
	}
	for name, want := range a.want {
		if have := got[name]; have == nil || !reflect.DeepEqual(have.Object, want.Object) {
			errs = append(errs, fmt.Errorf("%s is\n%v\nwant\n%v", name, have, want))
		}
	}
	return errors.Join(errs...)
}

// write makes, changes and deletes the objects of one writer.
func (a *alikeObjects) write(writer int, r *rand.Rand) {
	ctx := a.t.Context()
	for i := range 40 {
		name := fmt.Sprintf("w%d-%d", writer, r.Intn(4))
		a.mu.Lock()
		have := a.want[name]
		a.mu.Unlock()
		fresh := a.like.DeepCopy()
		fresh.SetName(name)
		var now *unstructured.Unstructured
		var err error
		switch what := r.Intn(7); {
		case have == nil:
			now, err = a.d.Create(ctx, fresh, metav1.CreateOptions{})
		case what == 0:
			err = a.d.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
			if err == nil {
				a.mu.Lock()
				delete(a.want, name)
				a.mu.Unlock()
				continue
			}
		case what == 1:
			now, err = a.d.Apply(ctx, name, applied(fresh, i), metav1.ApplyOptions{FieldManager: fmt.Sprintf("m%d", r.Intn(2)), Force: true})
		case what == 2:
			changed := have.DeepCopy()
			labels := changed.GetLabels()
			labels["update"] = fmt.Sprint(i)
			changed.SetLabels(labels)
			now, err = a.d.Update(ctx, changed, metav1.UpdateOptions{})
		case what == 3:
			changed := have.DeepCopy()
			changed.SetLabels(map[string]string{"app": "never"})
			_, err = a.d.Update(ctx, changed, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			if err == nil {
				continue
			}
		case what == 4:
			now, err = a.d.Patch(ctx, name, types.JSONPatchType, []byte(fmt.Sprintf(`[{"op": "add", "path": "/metadata/labels/json", "value": "%d"}]`, i)), metav1.PatchOptions{})
		case what == 5:
			now, err = a.d.Patch(ctx, name, types.StrategicMergePatchType, []byte(fmt.Sprintf(`{"metadata": {"annotations": {"strategic": "%d"}, "finalizers": []}}`, i)), metav1.PatchOptions{})
		default:
			now, err = a.d.Patch(ctx, name, types.MergePatchType, []byte(fmt.Sprintf(`{"metadata": {"annotations": {"merge": "%d"}}}`, i)), metav1.PatchOptions{})
		}
		if err != nil {
			a.t.Errorf("%s: %v", name, err)
			return
		}
		a.mu.Lock()
		a.want[name] = now
		a.mu.Unlock()
	}
}

func applied(o *unstructured.Unstructured, i int) *unstructured.Unstructured {
	labels := o.GetLabels()
	labels["apply"] = fmt.Sprint(i)
	o.SetLabels(labels)
	return o
}

// read reads in every form until ctx is done.
func (a *alikeObjects) read(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		q := a.c.RESTClient().Get().AbsPath(a.paths[r.Intn(len(a.paths))])
		if r.Intn(2) == 0 {
			q = q.Param("resourceVersion", "0")
		}
		switch r.Intn(4) {
		case 0:
			q = q.Param("labelSelector", "app=web,update!=1")
		case 1:
			q = q.Param("fieldSelector", "metadata.name=w0-0")
		case 2:
			q = q.Param("limit", "3")
		}
		q = q.SetHeader("Accept", []string{
			"application/json", "application/vnd.kubernetes.protobuf", "application/yaml", "application/json;as=Table;v=v1;g=meta.k8s.io",
			"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
		}[r.Intn(6)])
		if raw, err := q.DoRaw(a.t.Context()); err != nil && !apierrors.IsTooManyRequests(err) || strings.Contains(string(raw), "never") {
			a.t.Errorf("%v %s", err, raw)
			return
		}
	}
}
