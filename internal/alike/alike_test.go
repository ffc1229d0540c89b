// SPDX-License-Identifier: Apache-2.0

package alike

import (
	"fmt"
	"math/rand"
	"reflect"
	"runtime"
	"testing"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

// pod is one of a Deployment's, decoded as it comes from the store.
func pod(t testing.TB, i int) *corev1.Pod {
	t.Helper()
	token := fmt.Sprintf("kube-api-access-%05d", i)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("web-5f7cb7757d-%05d", i), Namespace: "default", UID: types.UID(fmt.Sprintf("uid-%d", i)), CreationTimestamp: metav1.Unix(1_800_000_000, 0),
			Labels: map[string]string{"app": "web", "pod-template-hash": "5f7cb7757d"}, ResourceVersion: fmt.Sprint(1000 + i),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-5f7cb7757d", UID: "rs", Controller: new(true), BlockOwnerDeletion: new(true)}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "coracle", Operation: metav1.ManagedFieldsOperationUpdate, FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{".":{},"f:app":{}}}}`)}},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example/team/web:1.2.3", Env: []corev1.EnvVar{{Name: "A", Value: "one"}},
				Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}},
				VolumeMounts: []corev1.VolumeMount{{Name: token, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{Name: token, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: new(int64(3607))}}}}}}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64(30))}},
			NodeName:    fmt.Sprintf("node-%d", i%7),
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.42.0.%d", i%250), Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	raw, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out := &corev1.Pod{}
	if err := out.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPodsOfADeployment(t *testing.T) {
	first, next := pod(t, 1), pod(t, 2)
	wantFirst, want := first.DeepCopy(), next.DeepCopy()
	Share(first, next)
	if !reflect.DeepEqual(first, wantFirst) || !reflect.DeepEqual(next, want) {
		t.Fatalf("an object is another one now:\n%v\n%v", first, next)
	}
	for what, same := range map[string]bool{
		"labels":         reflect.ValueOf(first.Labels).Pointer() == reflect.ValueOf(next.Labels).Pointer(),
		"owners":         &first.OwnerReferences[0] == &next.OwnerReferences[0],
		"managed fields": &first.ManagedFields[0] == &next.ManagedFields[0],
		"environment":    &first.Spec.Containers[0].Env[0] == &next.Spec.Containers[0].Env[0],
		"tolerations":    &first.Spec.Tolerations[0] == &next.Spec.Tolerations[0],
		"a volume's projection, though its name is another": first.Spec.Volumes[0].Projected == next.Spec.Volumes[0].Projected,
		"an image's name": unsafe.StringData(first.Spec.Containers[0].Image) == unsafe.StringData(next.Spec.Containers[0].Image),
		"conditions":      &first.Status.Conditions[0] == &next.Status.Conditions[0],
	} {
		if !same {
			t.Errorf("each has its own: %s", what)
		}
	}
	if &first.Spec.Containers[0] == &next.Spec.Containers[0] || &first.Spec.Volumes[0] == &next.Spec.Volumes[0] {
		t.Error("what differs is shared")
	}
}

// TestAppend: an appended element does not come to stand in another object's memory.
func TestAppend(t *testing.T) {
	first, next := pod(t, 1), pod(t, 1)
	first.Finalizers = append(make([]string, 0, 4), "a")
	next.Finalizers = []string{"a"}
	Share(first, next)
	third := append(next.Finalizers, "b")
	if got := first.Finalizers[:2]; got[1] != "" || third[1] != "b" {
		t.Errorf("%q, %q", got, third)
	}
}

// TestRandom shares parts of random objects, of which many are alike, and wants each to be what it was.
func TestRandom(t *testing.T) {
	seed := time.Now().UnixNano()
	f := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs), rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme))
	fresh := []func() kruntime.Object{
		func() kruntime.Object { return &corev1.Pod{} }, func() kruntime.Object { return &corev1.Node{} }, func() kruntime.Object { return &corev1.Secret{} },
		func() kruntime.Object { return &corev1.Service{} }, func() kruntime.Object { return &discoveryv1.EndpointSlice{} },
	}
	for i := range 600 {
		a, b := fresh[i%len(fresh)](), fresh[i%len(fresh)]()
		f.Fill(a)
		f.Fill(b)
		if i%2 == 0 { // alike but for a part
			parts := reflect.ValueOf(a.DeepCopyObject()).Elem()
			part := i / 2 % parts.NumField()
			parts.Field(part).Set(reflect.ValueOf(b).Elem().Field(part))
			b = parts.Addr().Interface().(kruntime.Object).DeepCopyObject()
		}
		wantA, wantB := a.DeepCopyObject(), b.DeepCopyObject()
		Share(a, b)
		if !reflect.DeepEqual(a, wantA) || !reflect.DeepEqual(b, wantB) {
			t.Fatalf("seed %d, object %d: an object is another one now", seed, i)
		}
	}
}

func TestNothingToShare(t *testing.T) {
	p := pod(t, 1)
	var none *corev1.Pod
	for _, c := range [][2]any{{p, p}, {p, &corev1.Node{}}, {none, p}, {p, none}, {nil, p}, {p, nil}, {"a", "a"}, {*p, *p}} {
		Share(c[0], c[1])
	}
	if !reflect.DeepEqual(p, pod(t, 1)) {
		t.Error("the object is another one now")
	}
}

func TestFamily(t *testing.T) {
	var f Family
	other := pod(t, 3)
	other.OwnerReferences[0].UID = "another ReplicaSet"
	first, second, node := pod(t, 1), pod(t, 2), &corev1.Node{}
	for _, o := range []any{first, other, node, second} {
		f.Join(o)
	}
	f.Join("a tombstone")
	if first.Spec.Volumes[0].Projected != second.Spec.Volumes[0].Projected {
		t.Error("pods of one ReplicaSet have parts of their own")
	}
	if first.Spec.Volumes[0].Projected == other.Spec.Volumes[0].Projected {
		t.Error("pods of two ReplicaSets share")
	}
	for i := range 3 * kindred {
		p := pod(t, i)
		p.OwnerReferences[0].UID = types.UID(fmt.Sprint(i))
		f.Join(p)
	}
	if n := len(f.last); n > kindred {
		t.Errorf("%d objects are remembered", n)
	}
}

func BenchmarkShare(b *testing.B) {
	first := pod(b, 1)
	pods := make([]*corev1.Pod, 64)
	for i := range pods {
		pods[i] = pod(b, 1+i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		Share(first, pods[i%len(pods)])
	}
}

// BenchmarkMemory tells what 10,000 pods of 200 ReplicaSets take.
func BenchmarkMemory(b *testing.B) {
	for _, family := range []bool{false, true} {
		b.Run(fmt.Sprintf("shared=%t", family), func(b *testing.B) {
			for b.Loop() {
				var f Family
				heap := func() uint64 {
					runtime.GC()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return m.HeapAlloc
				}
				before := heap()
				pods := make([]*corev1.Pod, 0, 10_000)
				for i := range cap(pods) {
					p := pod(b, i)
					p.OwnerReferences[0].UID = types.UID(fmt.Sprint(i / 50))
					if family {
						f.Join(p)
					}
					pods = append(pods, p)
				}
				b.ReportMetric(float64(heap()-before)/float64(len(pods)), "B/pod")
				runtime.KeepAlive(pods)
			}
		})
	}
}
