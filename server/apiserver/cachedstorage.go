// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
)

// cachedStorage is the store as a watch cache's reflector reads it. It reports when the reflector begins with a list.
type cachedStorage struct {
	storage.Interface
	listed func()
}

// EnableResourceSizeEstimation implements storage.Interface. A store outlives its caches: it would estimate objects'
// sizes by the keys of its first cache until it ends, and refuse those of a second one.
func (s *cachedStorage) EnableResourceSizeEstimation(storage.KeysFunc) error { return nil }

// GetList implements storage.Interface.
func (s *cachedStorage) GetList(
	ctx context.Context, key string, opts storage.ListOptions, list runtime.Object,
) error {
	err := s.Interface.GetList(ctx, key, opts, list)
	if err == nil && opts.Predicate.Continue == "" { // a list's first page
		s.listed()
	}
	return err
}

// Watch implements storage.Interface.
func (s *cachedStorage) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	w, err := s.Interface.Watch(ctx, key, opts)
	if err == nil && opts.SendInitialEvents != nil && *opts.SendInitialEvents { // a list as a watch
		s.listed()
	}
	return w, err
}

// mapWatch passes on a watch's events as f makes them. Unlike watch.Filter it also ends when an event has no reader
// any more.
func mapWatch(in watch.Interface, f func(watch.Event) watch.Event) watch.Interface {
	w := &mappedWatch{Interface: in, out: make(chan watch.Event), stopped: make(chan struct{})}
	go w.run(f)
	return w
}

type mappedWatch struct {
	watch.Interface
	out     chan watch.Event
	stopped chan struct{}
	stop    sync.Once
}

// ResultChan implements watch.Interface.
func (w *mappedWatch) ResultChan() <-chan watch.Event { return w.out }

// Stop implements watch.Interface.
func (w *mappedWatch) Stop() {
	w.stop.Do(func() { close(w.stopped) })
	w.Interface.Stop()
}

func (w *mappedWatch) run(f func(watch.Event) watch.Event) {
	defer close(w.out)
	for e := range w.Interface.ResultChan() {
		select {
		case w.out <- f(e):
		case <-w.stopped:
			return
		}
	}
}
