// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	upstream "k8s.io/kubernetes/pkg/scheduler"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// podRecorder is which pods a handler has received, by name, with their phase.
type podRecorder struct {
	mu   sync.Mutex
	pods map[string]corev1.PodPhase
	odd  []string
}

func (o *podRecorder) handler() cache.ResourceEventHandler {
	set := func(what string, obj any, known bool) {
		pod := obj.(*corev1.Pod)
		o.mu.Lock()
		defer o.mu.Unlock()
		if _, ok := o.pods[pod.Name]; ok != known {
			o.odd = append(o.odd, what+" of "+pod.Name)
		}
		if o.pods[pod.Name] = pod.Status.Phase; what == "delete" {
			delete(o.pods, pod.Name)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { set("add", obj, false) },
		UpdateFunc: func(_, obj any) { set("update", obj, true) },
		DeleteFunc: func(obj any) { set("delete", obj, true) },
	}
}

func (o *podRecorder) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for name, phase := range o.pods {
		out = append(out, name+" "+string(phase))
	}
	slices.Sort(out)
	return fmt.Sprint(out, o.odd)
}

// TestHandlersSeeOnlyUnfinishedPods changes pods at random, and compares what handlers and readers get with the pods
// that there are.
func TestHandlersSeeOnlyUnfinishedPods(t *testing.T) {
	phases := []corev1.PodPhase{corev1.PodPending, corev1.PodPending, corev1.PodRunning, corev1.PodRunning, corev1.PodUnknown, corev1.PodSucceeded, corev1.PodFailed}
	client := fake.NewClientset()
	api := client.CoreV1().Pods("default")
	factory := newInformers(informers.NewSharedInformerFactory(client, 0))
	informer := factory.Core().V1().Pods().Informer()
	handlers := []*podRecorder{{pods: map[string]corev1.PodPhase{}}, {pods: map[string]corev1.PodPhase{}}, {pods: map[string]corev1.PodPhase{}}}
	period := time.Hour
	_, err1 := informer.AddEventHandler(handlers[0].handler())
	_, err2 := informer.AddEventHandlerWithResyncPeriod(handlers[1].handler(), period)
	_, err3 := informer.AddEventHandlerWithOptions(handlers[2].handler(), cache.HandlerOptions{ResyncPeriod: &period})
	testenv.Require(t, err1 == nil && err2 == nil && err3 == nil, "%v %v %v", err1, err2, err3)
	factory.Start(t.Context().Done())
	testenv.Require(t, factory.waitSynced(t.Context()), "not synced")

	r := rand.New(rand.NewPCG(testenv.Seed(t), 0))
	pods := map[string]corev1.PodPhase{}
	unfinishedOnes := func() (names, want []string) {
		for name, phase := range pods {
			if phase != corev1.PodSucceeded && phase != corev1.PodFailed {
				names, want = append(names, name), append(want, name+" "+string(phase))
			}
		}
		slices.Sort(names)
		slices.Sort(want)
		return names, want
	}
	expectPods := func() {
		t.Helper()
		_, want := unfinishedOnes()
		for i, h := range handlers { // each is called by a goroutine of its own
			testenv.Eventually(t, 2*time.Minute, fmt.Sprintf("handler %d has received", i), func() error {
				if got := h.String(); got != fmt.Sprint(want, []string(nil)) {
					return fmt.Errorf("of %s, want %s", got, want)
				}
				return nil
			})
		}
	}
	for i := range 300 {
		if i%(int(watch.DefaultChanSize)/2) == 0 { // a fake watch panics when more changes than DefaultChanSize wait to be read
			expectPods()
		}
		name := "p" + strconv.Itoa(r.IntN(12))
		phase, is := pods[name]
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		var err error
		switch {
		case !is:
			pod.Status.Phase = phases[r.IntN(len(phases))]
			_, err = api.Create(t.Context(), pod, metav1.CreateOptions{})
			pods[name] = pod.Status.Phase
		case r.IntN(3) == 0:
			err = api.Delete(t.Context(), name, metav1.DeleteOptions{})
			delete(pods, name)
		default:
			pod.Status.Phase = phases[r.IntN(len(phases))]
			if phase == corev1.PodSucceeded || phase == corev1.PodFailed {
				pod.Status.Phase = phase // it is so for good
			}
			_, err = api.Update(t.Context(), pod, metav1.UpdateOptions{})
			pods[name] = pod.Status.Phase
		}
		testenv.NoError(t, err)
	}

	expectPods()
	names, _ := unfinishedOnes()
	lister := factory.Core().V1().Pods().Lister()
	all, err1 := lister.List(labels.Everything())
	inNamespace, err2 := lister.Pods("default").List(labels.Everything())
	byIndex, err3 := informer.GetIndexer().ByIndex(cache.NamespaceIndex, "default")
	testenv.Require(t, err1 == nil && err2 == nil && err3 == nil, "%v %v %v", err1, err2, err3)
	for what, got := range map[string]string{"all": nameList(all), "in the namespace": nameList(inNamespace), "by index": nameList(podsOf(byIndex)), "of the store": nameList(podsOf(informer.GetStore().List()))} {
		testenv.True(t, got == strings.Join(names, " "), "%s: %s, want %s", what, got, names)
	}
	for i := range 12 {
		name := "p" + strconv.Itoa(i)
		_, err := lister.Pods("default").Get(name)
		_, exists, _ := informer.GetIndexer().Get(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
		if want := slices.Contains(names, name); (err == nil) != want || exists != want {
			t.Errorf("%s: there by name: %t, by object: %t, want %t", name, err == nil, exists, want)
		}
	}
}

func podsOf(all []any) []*corev1.Pod {
	out := make([]*corev1.Pod, len(all))
	for i := range all {
		out[i] = all[i].(*corev1.Pod)
	}
	return out
}

func nameList(pods []*corev1.Pod) string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestUpstreamLeavesOutTheSamePods: a phase that upstream's own informer begins to leave out has to be left out here.
func TestUpstreamLeavesOutTheSamePods(t *testing.T) {
	client := fake.NewClientset()
	factory := upstream.NewInformerFactory(client, 0, nil)
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	testenv.Until(t, 2*time.Minute, "pods are watched", func() bool { // which begins after the list that a cache waits for
		return slices.ContainsFunc(client.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", "pods") })
	})
	for _, action := range client.Actions() {
		w, ok := action.(clienttesting.WatchAction)
		if !ok {
			continue
		}
		left := 0
		for _, phase := range []corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodUnknown, corev1.PodSucceeded, corev1.PodFailed} {
			shown := w.GetWatchRestrictions().Fields.Matches(fields.Set{"status.phase": string(phase)})
			pod := &corev1.Pod{Status: corev1.PodStatus{Phase: phase}}
			if shown != isUnfinished(pod) || shown != isUnfinished(cache.DeletedFinalStateUnknown{Obj: pod}) {
				t.Errorf("upstream shows %s: %t", phase, shown)
			}
			if !shown {
				left++
			}
		}
		if left != 2 {
			t.Errorf("upstream leaves out %d phases with %s", left, w.GetWatchRestrictions().Fields)
		}
		return
	}
	t.Errorf("upstream watches no pods: %v", client.Actions())
}
