// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"reflect"
	goruntime "runtime"
	"slices"
	"testing"
	"testing/synctest"
	"weak"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
)

// eventStorage lists one pod, and its watches have the events that a test sends.
type eventStorage struct {
	storage.Interface
	listed *corev1.Pod
	events *watch.FakeWatcher
}

func (s *eventStorage) GetList(_ context.Context, _ string, _ storage.ListOptions, list runtime.Object) error {
	list.(*corev1.PodList).Items = []corev1.Pod{*s.listed}
	return nil
}

func (s *eventStorage) Watch(context.Context, string, storage.ListOptions) (watch.Interface, error) {
	return s.events, nil
}

func ownedPod(name, version string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, ResourceVersion: version, Labels: map[string]string{"app": "web"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", UID: "rs", Controller: new(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "node-" + name, Containers: []corev1.Container{{Name: "web", Env: []corev1.EnvVar{{Name: "A", Value: "one"}}}}},
	}
}

func sameSpec(a, b *corev1.Pod) bool { return &a.Spec.Containers[0] == &b.Spec.Containers[0] }
func sameLabels(a, b *corev1.Pod) bool {
	return reflect.ValueOf(a.Labels).Pointer() == reflect.ValueOf(b.Labels).Pointer()
}

// TestCacheHoldsEqualPartsOnce: what a watch cache gets are the objects that the store sent, with memory in common.
func TestCacheHoldsEqualPartsOnce(t *testing.T) {
	store := &eventStorage{listed: ownedPod("a", "1"), events: watch.NewFake()}
	s := &sharing{Interface: store}
	var list corev1.PodList
	if err := s.GetList(t.Context(), "/pods", storage.ListOptions{}, &list); err != nil {
		t.Fatal(err)
	}
	first := &list.Items[0]
	w, err := s.Watch(t.Context(), "/pods", storage.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	next := func(kind watch.EventType, sent *corev1.Pod) *corev1.Pod {
		t.Helper()
		want := sent.DeepCopy()
		go store.events.Action(kind, sent)
		e := <-w.ResultChan()
		got, ok := e.Object.(*corev1.Pod)
		if e.Type != kind || !ok || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s %v, want %s %v", e.Type, e.Object, kind, want)
		}
		return got
	}

	changed := ownedPod("a", "2")
	changed.Status.Phase = corev1.PodRunning
	if changed = next(watch.Modified, changed); !sameSpec(first, changed) || !sameLabels(first, changed) {
		t.Error("the next version of a pod has a spec of its own")
	}
	sibling := next(watch.Added, ownedPod("b", "3"))
	if !sameLabels(first, sibling) {
		t.Error("another pod of the same ReplicaSet has labels of its own")
	}
	if deleted := next(watch.Deleted, ownedPod("a", "4")); !sameSpec(first, deleted) {
		t.Error("the last version of a pod has a spec of its own")
	}
	if _, ok := s.newest[types.NamespacedName{Namespace: "default", Name: "a"}]; ok || len(s.newest) != 1 {
		t.Errorf("remembered after a deletion: %v", s.newest)
	}
	go store.events.Action(watch.Bookmark, ownedPod("", "5"))
	if e := <-w.ResultChan(); e.Type != watch.Bookmark || len(s.newest) != 1 {
		t.Errorf("%s, remembered after a bookmark: %v", e.Type, s.newest)
	}
	if _, err := s.Watch(t.Context(), "/pods", storage.ListOptions{SendInitialEvents: new(true)}); err != nil || len(s.newest) != 0 {
		t.Errorf("%v; remembered when all objects come anew: %v", err, s.newest)
	}
}

// pagedStorage lists pods in pages, of which each has a slice of its own, as those of a store.
type pagedStorage struct {
	storage.Interface
	pages map[string][]corev1.Pod // by the token that they go on with
}

func (s *pagedStorage) GetList(_ context.Context, _ string, opts storage.ListOptions, list runtime.Object) error {
	list.(*corev1.PodList).Items = slices.Clone(s.pages[opts.Predicate.Continue])
	return nil
}

// TestListIsNotKept: what is remembered of a list's objects that are still there does not keep those that are gone.
func TestListIsNotKept(t *testing.T) {
	s := &sharing{Interface: &pagedStorage{pages: map[string][]corev1.Pod{"": {*ownedPod("a", "1"), *ownedPod("b", "2"), *ownedPod("c", "3")}}}}
	list := &corev1.PodList{}
	if err := s.GetList(t.Context(), "/pods", storage.ListOptions{}, list); err != nil {
		t.Fatal(err)
	}
	if !sameLabels(&list.Items[0], &list.Items[2]) {
		t.Error("pods of one ReplicaSet that are listed have labels of their own")
	}
	next := ownedPod("a", "4")
	if s.keep(watch.Modified, next); !sameSpec(&list.Items[0], next) {
		t.Error("the next version of a pod that was listed has a spec of its own")
	}
	gone := weak.Make(&list.Items[1]) // from here on nobody has the list
	s.keep(watch.Deleted, ownedPod("b", "5"))
	goruntime.GC()
	if gone.Value() != nil {
		t.Error("a pod that is gone is kept with the list that it came in")
	}
	if len(s.newest) != 2 {
		t.Errorf("remembered: %v", s.newest)
	}
}

// TestNothingIsKeptOfWhatIsGone: large objects, each with a controller of its own, come and go.
func TestNothingIsKeptOfWhatIsGone(t *testing.T) {
	s := &sharing{}
	var gone []weak.Pointer[corev1.Pod]
	for i := range 100 {
		made := ownedPod(fmt.Sprint(i), "1")
		made.OwnerReferences[0].UID = types.UID(fmt.Sprint(i))
		s.keep(watch.Added, made)
		gone = append(gone, weak.Make(made))
		last := made.DeepCopy()
		s.keep(watch.Deleted, last)
	}
	goruntime.GC()
	kept := 0
	for _, p := range gone {
		if p.Value() != nil {
			kept++
		}
	}
	if kept > 0 {
		t.Errorf("%d of 100 pods that are gone are kept", kept)
	}
	goruntime.KeepAlive(s)
}

// TestPagesOfAList are remembered together.
func TestPagesOfAList(t *testing.T) {
	s := &sharing{Interface: &pagedStorage{pages: map[string][]corev1.Pod{"": {*ownedPod("a", "1")}, "next": {*ownedPod("b", "2")}}}}
	for range 2 { // the second list takes the first one's place
		for _, token := range []string{"", "next"} {
			if err := s.GetList(t.Context(), "/pods", storage.ListOptions{Predicate: storage.SelectionPredicate{Continue: token}}, &corev1.PodList{}); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.newest) != 2 {
			t.Errorf("%d objects are remembered of two pages with one each", len(s.newest))
		}
	}
}

// TestStoppedWatchWaitsForNobody: an event that nobody reads any more keeps no goroutine, which the end of the bubble would wait for.
func TestStoppedWatchWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := watch.NewFake()
		w, err := (&sharing{Interface: &eventStorage{events: events}}).Watch(t.Context(), "/pods", storage.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		events.Add(ownedPod("a", "1"))
		synctest.Wait() // the event waits for a reader
		w.Stop()
		w.Stop()
		synctest.Wait()
		if _, ok := <-w.ResultChan(); ok {
			t.Error("an event after the stop")
		}
	})
}
