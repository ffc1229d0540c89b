// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
)

// erringStorage answers each list and watch with err.
type erringStorage struct {
	storage.Interface
	err error
}

func (s *erringStorage) GetList(context.Context, string, storage.ListOptions, runtime.Object) error {
	return s.err
}

func (s *erringStorage) Watch(context.Context, string, storage.ListOptions) (watch.Interface, error) {
	return watch.NewFake(), s.err
}

// TestCachedStorageReportsLists: a list's first page and a watch with initial events are reported, nothing else is.
func TestCachedStorageReportsLists(t *testing.T) {
	store, lists := &erringStorage{}, 0
	s := &cachedStorage{Interface: store, listed: func() { lists++ }}
	list := func(token string) {
		opts := storage.ListOptions{Predicate: storage.SelectionPredicate{Continue: token}}
		_ = s.GetList(t.Context(), "/pods", opts, &corev1.PodList{})
	}
	begin := func(initial *bool) {
		_, _ = s.Watch(t.Context(), "/pods", storage.ListOptions{SendInitialEvents: initial})
	}
	for _, c := range []struct {
		name string
		do   func()
		err  error
		want int
	}{
		{"the first page", func() { list("") }, nil, 1},
		{"the second page", func() { list("next") }, nil, 0},
		{"a list that failed", func() { list("") }, errors.New("unavailable"), 0},
		{"a watch", func() { begin(nil) }, nil, 0},
		{"a watch without initial events", func() { begin(new(false)) }, nil, 0},
		{"a watch with initial events", func() { begin(new(true)) }, nil, 1},
		{"a watch that failed", func() { begin(new(true)) }, errors.New("unavailable"), 0},
	} {
		lists, store.err = 0, c.err
		if c.do(); lists != c.want {
			t.Errorf("%s: reported %d times, want %d", c.name, lists, c.want)
		}
	}
}

// TestMapWatchEndsWithoutReader: a goroutine whose event has no reader ends with the watch, which the end of the
// bubble waits for.
func TestMapWatchEndsWithoutReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := watch.NewFake()
		w := mapWatch(events, func(e watch.Event) watch.Event { return e })
		events.Add(&corev1.Pod{})
		synctest.Wait() // the event waits for a reader
		w.Stop()
		w.Stop()
		synctest.Wait()
		if _, ok := <-w.ResultChan(); ok {
			t.Error("an event after the stop")
		}
	})
}
