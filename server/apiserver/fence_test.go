// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// lateFence is a Fence that can be taken away, so that the store's own refusal is seen too, or made to know by itself
// of no term that is over, as one of a server that has not heard of it yet.
type lateFence struct {
	*raftstore.Store
	off, unaware atomic.Bool
}

func (f *lateFence) CheckTerm(ctx context.Context) error {
	if f.off.Load() || f.unaware.Load() {
		return nil
	}
	return f.Store.CheckTerm(ctx)
}

func (f *lateFence) ConfirmTerm(ctx context.Context) error {
	if f.off.Load() {
		return nil
	}
	return f.Store.ConfirmTerm(ctx)
}

// loops are clients as a term's loops have them.
type loops struct {
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	config  *rest.Config
	refused atomic.Int64
}

func (r *running) loops(t *testing.T, term uint64) *loops {
	t.Helper()
	l := &loops{}
	config, stop := r.TermConfig(func(ctx context.Context) context.Context {
		return raftstore.WithFence(ctx, term, func() { l.refused.Add(1) })
	})
	t.Cleanup(func() { testenv.Check(t, stop(context.Background())) })
	l.config, l.kube = config, client(t, config)
	var err error
	l.dynamic, err = dynamic.NewForConfig(config)
	testenv.NoError(t, err)
	return l
}

// A termWrite is a write that a loop may make, on objects that prepareWrites made.
type termWrite struct {
	name string
	// unstored is set for what leaves nothing in the store.
	unstored bool
	do       func(ctx context.Context, l *loops, ns string) error
}

func second[T any](_ T, err error) error { return err }

var (
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	create      = metav1.CreateOptions{}
	update      = metav1.UpdateOptions{}
	patch       = metav1.PatchOptions{}
)

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func configMap(name string, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: named(name), Data: map[string]string{"a": value}}
}

func patchMap(name string, kind types.PatchType, body string) termWrite {
	return termWrite{name: name, do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().ConfigMaps(ns).Patch(ctx, "patched", kind, []byte(body), patch))
	}}
}

// termWrites is every kind of write that the API has.
var termWrites = []termWrite{
	{name: "create", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().ConfigMaps(ns).Create(ctx, configMap("new", "1"), create))
	}},
	{name: "update", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().ConfigMaps(ns).Update(ctx, configMap("updated", "2"), update))
	}},
	patchMap("merge patch", types.MergePatchType, `{"data":{"b":"1"}}`),
	patchMap("strategic merge patch", types.StrategicMergePatchType, `{"data":{"c":"1"}}`),
	patchMap("JSON patch", types.JSONPatchType, `[{"op":"add","path":"/data/d","value":"1"}]`),
	{name: "apply", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().ConfigMaps(ns).Apply(ctx, applycorev1.ConfigMap("patched", ns).WithData(map[string]string{"e": "1"}),
			metav1.ApplyOptions{FieldManager: "loop"}))
	}},
	{name: "delete", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().ConfigMaps(ns).Delete(ctx, "deleted", metav1.DeleteOptions{})
	}},
	{name: "delete with a finalizer", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().ConfigMaps(ns).Delete(ctx, "finalized", metav1.DeleteOptions{})
	}},
	{name: "removal of the last finalizer", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().ConfigMaps(ns).Patch(ctx, "ending", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), patch))
	}},
	{name: "delete with grace", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().Pods(ns).Delete(ctx, "graceful", metav1.DeleteOptions{})
	}},
	{name: "deletecollection", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().ConfigMaps(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "many=yes"})
	}},
	{name: "status", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().Pods(ns).UpdateStatus(ctx, &corev1.Pod{ObjectMeta: named("reported"), Spec: podSpec,
			Status: corev1.PodStatus{Reason: "told"}}, update))
	}},
	{name: "status patch", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().Pods(ns).Patch(ctx, "reported", types.StrategicMergePatchType, []byte(`{"status":{"message":"told"}}`), patch, "status"))
	}},
	{name: "binding", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().Pods(ns).Bind(ctx, &corev1.Binding{ObjectMeta: named("bound"), Target: corev1.ObjectReference{Kind: "Node", Name: "one"}}, create)
	}},
	{name: "eviction", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.PolicyV1().Evictions(ns).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "evicted", Namespace: ns}})
	}},
	{name: "scale", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.AppsV1().Deployments(ns).UpdateScale(ctx, "scaled",
			&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "scaled", Namespace: ns}, Spec: autoscalingv1.ScaleSpec{Replicas: 2}}, update))
	}},
	{name: "scale patch", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.dynamic.Resource(deployments).Namespace(ns).Patch(ctx, "scaled", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`), patch, "scale"))
	}},
	{name: "token request", unstored: true, do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "user", &authenticationv1.TokenRequest{}, create))
	}},
	{name: "Service", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: named("new"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}, create))
	}},
	{name: "delete of a Service", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().Services(ns).Delete(ctx, "deleted", metav1.DeleteOptions{})
	}},
	{name: "event", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.kube.EventsV1().Events(ns).Create(ctx, &eventsv1.Event{ObjectMeta: named("new"), EventTime: metav1.NowMicro(), Type: "Normal",
			Reason: "Test", Action: "Test", ReportingController: "example.com/test", ReportingInstance: "one",
			Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: "bound"}}, create))
	}},
	{name: "custom object", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.dynamic.Resource(boats).Namespace(ns).Create(ctx, boat("new"), create))
	}},
	{name: "patch of a custom object", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.dynamic.Resource(boats).Namespace(ns).Patch(ctx, "old", types.MergePatchType, []byte(`{"spec":{"seats":3}}`), patch))
	}},
	{name: "status of a custom object", do: func(ctx context.Context, l *loops, ns string) error {
		return second(l.dynamic.Resource(boats).Namespace(ns).Patch(ctx, "old", types.MergePatchType, []byte(`{"status":{"afloat":true}}`), patch, "status"))
	}},
	{name: "delete of a custom object", do: func(ctx context.Context, l *loops, ns string) error {
		return l.dynamic.Resource(boats).Namespace(ns).Delete(ctx, "deleted", metav1.DeleteOptions{})
	}},
	{name: "deletecollection of custom objects", do: func(ctx context.Context, l *loops, ns string) error {
		return l.dynamic.Resource(boats).Namespace(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "many=yes"})
	}},
	{name: "delete of a namespace", do: func(ctx context.Context, l *loops, ns string) error {
		return l.kube.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{})
	}},
	{name: "finalize of a namespace", do: func(ctx context.Context, l *loops, ns string) error {
		n, err := l.kube.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Spec.Finalizers = nil
		return second(l.kube.CoreV1().Namespaces().Finalize(ctx, n, update))
	}},
}

var podSpec = corev1.PodSpec{ServiceAccountName: "user", Containers: []corev1.Container{{Name: "c", Image: "example.com/c"}}}

// prepareWrites makes what termWrites work on, in a namespace of its own.
func prepareWrites(t *testing.T, s *running) string {
	t.Helper()
	ctx, c := t.Context(), client(t, s.admin())
	ns := namespace(t, c)
	must := func(err error) {
		t.Helper()
		testenv.NoError(t, err)
	}
	core := c.CoreV1()
	for _, name := range []string{"updated", "patched", "deleted", "finalized", "ending", "many-1", "many-2", "many-3"} {
		m := configMap(name, "1")
		if strings.HasPrefix(name, "many") {
			m.Labels = map[string]string{"many": "yes"}
		}
		if name == "finalized" || name == "ending" {
			m.Finalizers = []string{"example.com/test"}
		}
		must(second(core.ConfigMaps(ns).Create(ctx, m, create)))
	}
	must(core.ConfigMaps(ns).Delete(ctx, "ending", metav1.DeleteOptions{}))
	must(second(core.ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: named("user")}, create)))
	for _, name := range []string{"reported", "bound", "evicted", "graceful"} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod": name}}, Spec: podSpec}
		if name == "graceful" {
			pod.Spec.NodeName = "one"
		}
		must(second(core.Pods(ns).Create(ctx, pod, create)))
	}
	must(second(core.Services(ns).Create(ctx, &corev1.Service{ObjectMeta: named("deleted"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, create)))
	labels := map[string]string{"app": "scaled"}
	must(second(c.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{ObjectMeta: named("scaled"), Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podSpec}}}, create)))
	d, err := dynamic.NewForConfig(s.admin())
	must(err)
	eventually(t, "a custom object", func() error { return second(d.Resource(boats).Namespace(ns).Create(ctx, boat("old"), create)) })
	for _, name := range []string{"deleted", "many-1", "many-2"} {
		b := boat(name)
		if name != "deleted" {
			b.SetLabels(map[string]string{"many": "yes"})
		}
		must(second(d.Resource(boats).Namespace(ns).Create(ctx, b, create)))
	}
	return ns
}

// objectsOf is every key of the store that names something, with the revision of its last change.
func objectsOf(t *testing.T, store *raftstore.Store, name string) map[string]int64 {
	t.Helper()
	resp := testenv.Must(store.Client().Client.Get(t.Context(), "/registry/", clientv3.WithPrefix()))(t)
	out := map[string]int64{}
	for _, kv := range resp.Kvs {
		if strings.Contains(string(kv.Key)+"/", "/"+name+"/") || strings.HasPrefix(string(kv.Key), "/registry/ipaddresses/") ||
			strings.HasPrefix(string(kv.Key), "/registry/ranges/") {
			out[string(kv.Key)] = kv.ModRevision
		}
	}
	testenv.Require(t, len(out) >= 10, "%d keys of %s", len(out), name)
	return out
}

func isFenced(err error) error {
	if err == nil {
		return errors.New("it was done")
	}
	if !strings.Contains(err.Error(), "the write is fenced") {
		return fmt.Errorf("it was refused for another reason: %w", err)
	}
	return nil
}

// TestWritesAfterTermEndAreRefused is about writes of a leader's loops: each kind is refused, and changes nothing, when
// the term is over, and works in the right one.
func TestWritesAfterTermEndAreRefused(t *testing.T) {
	f := newFixtureOf(t, openServers)
	fence := &lateFence{Store: f.store}
	o := f.options(t)
	o.Fence = fence
	s := f.start(t, o)
	ctx := t.Context()
	testenv.NoError(t, second(dynamicClient(t, s).Resource(definitions).Create(ctx, object(t, boatDefinition), create)))
	ns := prepareWrites(t, s)
	move := func(to int) uint64 {
		t.Helper()
		return testenv.Must(f.servers.moveLeadership(ctx, to))(t)
	}
	old := s.loops(t, f.store.Status().Leadership.Term)
	// Not by luck: the same clients may write before.
	testenv.NoError(t, second(old.kube.CoreV1().ConfigMaps(ns).Create(ctx, configMap("before", "1"), create)))
	refuse := func(t *testing.T) {
		before := objectsOf(t, f.store, ns)
		for _, w := range termWrites {
			for _, off := range []bool{true, false} {
				if off && w.unstored {
					continue
				}
				fence.off.Store(off)
				count := old.refused.Load()
				testenv.Check(t, isFenced(w.do(ctx, old, ns)), "%s", w.name)
				testenv.False(t, old.refused.Load() == count, "%s: its refusal was not reported", w.name)
			}
		}
		for key, rev := range objectsOf(t, f.store, ns) {
			testenv.False(t, before[key] != rev && !passing(key), "%s has changed", key)
			delete(before, key)
		}
		for key := range maps.Keys(before) {
			t.Errorf("%s is gone", key)
		}
	}

	move(1)
	t.Run("another server leads", refuse)
	t.Run("unknown here", func(t *testing.T) { testConfirmed(t, s, fence, old, ns) })
	// Others' writes are forwarded meanwhile.
	testenv.Check(t, second(client(t, s.admin()).CoreV1().ConfigMaps(ns).Create(ctx, configMap("after", "1"), create)))
	now := s.loops(t, move(0))
	t.Run("this server leads again", refuse)
	for _, w := range termWrites {
		testenv.Check(t, w.do(ctx, now, ns), "%s in the right term", w.name)
	}
	testenv.Equal(t, now.refused.Load(), 0, "writes of the right term were refused:")
	t.Run("Unfenced", func(t *testing.T) { testUnfenced(t, s, fence) })
}

// passing tells keys that the store's refusal leaves changed and that do no harm:
// an allocator's range is written for an allocation and again when it is taken back.
func passing(key string) bool { return strings.HasPrefix(key, "/registry/ranges/") }
