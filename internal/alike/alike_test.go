// SPDX-License-Identifier: Apache-2.0

package alike

import (
	"fmt"
	"math"
	"math/rand"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"
	"weak"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/coracle-k8s/coracle/internal/testenv"
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

// TestRandom shares parts of random objects of every type that clients have, of which many are alike, and wants each to be what it was.
func TestRandom(t *testing.T) {
	seed := int64(testenv.Seed(t))
	f := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs), rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme))
	var fresh []func() kruntime.Object
	for kind := range scheme.Scheme.AllKnownTypes() {
		if o, err := scheme.Scheme.New(kind); err != nil || kind.Version == kruntime.APIVersionInternal {
			continue
		} else if _, err := meta.Accessor(o); err != nil { // lists, and the options of requests
			continue
		}
		fresh = append(fresh, func() kruntime.Object { o, _ := scheme.Scheme.New(kind); return o })
	}
	if len(fresh) < 100 {
		t.Fatalf("%d types", len(fresh))
	}
	for i := range 6 * len(fresh) {
		a, b := fresh[i%len(fresh)](), fresh[i%len(fresh)]()
		f.Fill(a)
		f.Fill(b)
		alikeTo := func(a, b kruntime.Object) kruntime.Object { // but for a part
			parts := reflect.ValueOf(a.DeepCopyObject()).Elem()
			part := i / len(fresh) / 2 % parts.NumField()
			parts.Field(part).Set(reflect.ValueOf(b).Elem().Field(part))
			return parts.Addr().Interface().(kruntime.Object).DeepCopyObject()
		}
		next := alikeTo(a, b)
		if i/len(fresh)%2 == 0 {
			b = alikeTo(a, b)
		}
		wantA, wantB := a.DeepCopyObject(), b.DeepCopyObject()
		Share(a, b)
		if !reflect.DeepEqual(a, wantA) || !reflect.DeepEqual(b, wantB) {
			t.Fatalf("seed %d, object %d, %T: an object is another one now", seed, i, a)
		}
		if shared := quantities(reflect.ValueOf(a), nil); len(shared) > 0 {
			for at := range quantities(reflect.ValueOf(b), nil) {
				if shared[at] {
					t.Fatalf("seed %d, object %d, %T: two objects hold one quantity", seed, i, a)
				}
			}
		}
		other := alikeTo(b, a) // with nothing in common yet
		want, at := next.DeepCopyObject(), [2]string{places(a), places(other)}
		Share(a, next)
		shareBeside(other, next, a)
		if !reflect.DeepEqual(next, want) {
			t.Fatalf("seed %d, object %d, %T: an object with parts of two is another one now", seed, i, a)
		}
		if places(a) != at[0] || places(other) != at[1] {
			t.Fatalf("seed %d, object %d, %T: an object that somebody may read is written to", seed, i, a)
		}
	}
}

// places says where all is that an object leads to.
func places(o any) string {
	var out strings.Builder
	var add func(v reflect.Value)
	add = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			fmt.Fprintf(&out, " %p", unsafe.StringData(v.String()))
		case reflect.Pointer:
			if fmt.Fprintf(&out, " %x", v.Pointer()); !v.IsNil() {
				add(v.Elem())
			}
		case reflect.Interface:
			if !v.IsNil() {
				add(v.Elem())
			}
		case reflect.Map:
			fmt.Fprintf(&out, " %x", v.Pointer()) // nobody writes into it
		case reflect.Slice:
			fmt.Fprintf(&out, " %x:%d", v.Pointer(), v.Cap())
			for i := range v.Len() {
				add(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				add(v.Field(i))
			}
		}
	}
	add(reflect.ValueOf(o))
	return out.String()
}

// quantities finds where the quantities are that an object leads to.
func quantities(v reflect.Value, found map[unsafe.Pointer]bool) map[unsafe.Pointer]bool {
	if found == nil {
		found = map[unsafe.Pointer]bool{}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			quantities(v.Elem(), found)
		}
	case reflect.Slice:
		for i := range v.Len() {
			quantities(v.Index(i), found)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			quantities(v.MapIndex(key), found)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[resource.Quantity]() {
			if v.CanAddr() {
				found[v.Addr().UnsafePointer()] = true
			}
			return found
		}
		for i := range v.NumField() {
			quantities(v.Field(i), found)
		}
	}
	return found
}

// TestQuantityThatIsRead: whoever encodes an object writes the text of its quantities into them, which the race detector sees if anybody shares them or looks at them.
func TestQuantityThatIsRead(t *testing.T) {
	volumes := func(i int) *corev1.Pod {
		p := pod(t, i)
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: resource.NewQuantity(1<<30, resource.BinarySI)}}})
		return p
	}
	for range 200 {
		first, next := volumes(1), volumes(2)
		var reading sync.WaitGroup
		reading.Go(func() {
			if _, err := first.Marshal(); err != nil {
				t.Error(err)
			}
		})
		Share(first, next)
		reading.Go(func() {
			if _, err := next.Marshal(); err != nil {
				t.Error(err)
			}
		})
		reading.Wait()
		if first.Spec.Volumes[1].EmptyDir.SizeLimit == next.Spec.Volumes[1].EmptyDir.SizeLimit {
			t.Fatal("two objects hold one quantity")
		}
	}
}

// TestQuantitiesInMaps: those that have no address are shared with their map, those that a map's value points to are not.
func TestQuantitiesInMaps(t *testing.T) {
	device := func() *resourcev1.Device {
		return &resourcev1.Device{Name: "gpu", Capacity: map[resourcev1.QualifiedName]resourcev1.DeviceCapacity{
			"memory": {Value: resource.MustParse("8Gi"), RequestPolicy: &resourcev1.CapacityRequestPolicy{Default: resource.NewQuantity(1<<30, resource.BinarySI)}}}}
	}
	first, next := device(), device()
	Share(first, next)
	if first.Capacity["memory"].RequestPolicy == next.Capacity["memory"].RequestPolicy {
		t.Error("two objects hold one quantity")
	}
	one, two := pod(t, 1), pod(t, 1)
	Share(one, two)
	if reflect.ValueOf(one.Spec.Containers[0].Resources.Requests).Pointer() != reflect.ValueOf(two.Spec.Containers[0].Resources.Requests).Pointer() {
		t.Error("each has its own requests")
	}
}

// TestZeroAndMinusZero are equal for Go, and written differently.
func TestZeroAndMinusZero(t *testing.T) {
	type limits struct{ Minimum []*float64 }
	first, next := &limits{[]*float64{new(0.0)}}, &limits{[]*float64{new(math.Copysign(0, -1))}}
	Share(first, next)
	if !math.Signbit(*next.Minimum[0]) || math.Signbit(*first.Minimum[0]) {
		t.Errorf("%v, %v", *first.Minimum[0], *next.Minimum[0])
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
		f.Join(o, nil)
	}
	f.Join("a tombstone", nil)
	if first.Spec.Volumes[0].Projected != second.Spec.Volumes[0].Projected {
		t.Error("pods of one ReplicaSet have parts of their own")
	}
	if first.Spec.Volumes[0].Projected == other.Spec.Volumes[0].Projected {
		t.Error("pods of two ReplicaSets share")
	}
	for i := range 3 * kindred {
		p := pod(t, i)
		p.OwnerReferences[0].UID = types.UID(fmt.Sprint(i))
		f.Join(p, nil)
	}
	if n := len(f.first); n > kindred {
		t.Errorf("%d objects are remembered", n)
	}
}

// TestLastVersionIsRead: an object that comes to hold parts of its last version, and then of another one of its controller's, is written to, and what its last version holds is not, which somebody may read: the race detector sees it.
func TestLastVersionIsRead(t *testing.T) {
	var f Family
	first := pod(t, 1)
	f.Join(first, nil)
	for i := range 50 {
		last := pod(t, 2)
		last.Status.Conditions = append(last.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, Reason: fmt.Sprint(i)})
		next := last.DeepCopy()
		want := next.DeepCopy()
		var reading sync.WaitGroup
		reading.Go(func() {
			if _, err := last.Marshal(); err != nil {
				t.Error(err)
			}
		})
		f.Join(next, last)
		reading.Wait()
		if first.Spec.Volumes[0].Projected != next.Spec.Volumes[0].Projected && last.Spec.Volumes[0].Projected != next.Spec.Volumes[0].Projected {
			t.Fatal("it has parts of its own")
		}
		if !reflect.DeepEqual(next, want) {
			t.Fatalf("it is another one now:\n%v\n%v", next, want)
		}
	}
}

// TestNothingIsKeptOfWhatIsGone: objects with a controller each come, change and go, as the pods of Jobs do, and an informer's transform keeps none; and one that comes when the first of its controller's is gone is like those
// that are still there.
func TestNothingIsKeptOfWhatIsGone(t *testing.T) {
	transform := Transform(func(obj any) (any, error) { return obj, nil })
	through := func(i int, owner string) *corev1.Pod {
		t.Helper()
		p := pod(t, i)
		p.OwnerReferences[0].UID = types.UID(owner)
		if _, err := transform(p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	var gone []weak.Pointer[corev1.Pod]
	for i := range 100 {
		for range 2 { // as it is, and as it is deleted
			gone = append(gone, weak.Make(through(i, fmt.Sprint(i))))
		}
	}
	first := weak.Make(through(1, "a ReplicaSet"))
	second := through(2, "a ReplicaSet")
	changing := weak.Make(through(1, "another"))
	changed := through(1, "another")
	runtime.GC()
	kept := 0
	for _, p := range append(gone, first, changing) {
		if p.Value() != nil {
			kept++
		}
	}
	if kept > 0 {
		t.Errorf("%d pods that are gone are kept", kept)
	}
	third, fourth := through(3, "a ReplicaSet"), through(4, "a ReplicaSet")
	if third.Spec.Volumes[0].Projected != fourth.Spec.Volumes[0].Projected {
		t.Error("pods of one ReplicaSet have parts of their own when the first one is gone")
	}
	if sibling := through(2, "another"); sibling.Spec.Volumes[0].Projected != changed.Spec.Volumes[0].Projected {
		t.Error("pods of one ReplicaSet have parts of their own when the first one has changed")
	}
	runtime.KeepAlive(second)
	runtime.KeepAlive(third)
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
						f.Join(p, nil)
					}
					pods = append(pods, p)
				}
				b.ReportMetric(float64(heap()-before)/float64(len(pods)), "B/pod")
				runtime.KeepAlive(pods)
			}
		})
	}
}
