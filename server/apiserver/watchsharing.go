// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/coracle-k8s/coracle/internal/alike"
)

// sharing is the store as a watch cache's reflector sees it. The cache keeps the newest object of each name and, for as long as upstream's does, those before it: so each one has the equal parts
// of the one before, and those of another of its controller's (ADR 0121). One reflector at a time reads through it.
type sharing struct {
	storage.Interface
	listed func() // called when all objects come anew; may be nil

	mu     sync.Mutex
	newest map[types.NamespacedName]runtime.Object
	family alike.Family
}

// EnableResourceSizeEstimation implements storage.Interface. A store outlives its caches: it would estimate objects' sizes by the keys of its first one for ever, and refuse a second.
func (s *sharing) EnableResourceSizeEstimation(storage.KeysFunc) error { return nil }

// GetList implements storage.Interface.
func (s *sharing) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	if err := s.Interface.GetList(ctx, key, opts, list); err != nil {
		return err
	}
	if opts.Predicate.Continue == "" { // a list's first page
		s.forget()
	}
	return meta.EachListItem(list, func(o runtime.Object) error {
		item := reflect.ValueOf(o).Elem()
		kept := reflect.New(item.Type()) // a pointer into the list would keep all of the list's objects for as long as this one is the newest of its name
		kept.Elem().Set(item)
		s.keep(watch.Added, kept.Interface().(runtime.Object))
		item.Set(kept.Elem())
		return nil
	})
}

// Watch implements storage.Interface.
func (s *sharing) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	in, err := s.Interface.Watch(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	if opts.SendInitialEvents != nil && *opts.SendInitialEvents { // a list as a watch
		s.forget()
	}
	return mapWatch(in, func(e watch.Event) watch.Event {
		if e.Type == watch.Added || e.Type == watch.Modified || e.Type == watch.Deleted {
			s.keep(e.Type, e.Object)
		}
		return e
	}), nil
}

// forget is for when all objects come anew.
func (s *sharing) forget() {
	s.mu.Lock()
	s.newest = nil
	s.mu.Unlock()
	if s.listed != nil {
		s.listed()
	}
}

// keep shares the parts of an object that the watch cache is about to keep, or to forget.
func (s *sharing) keep(kind watch.EventType, o runtime.Object) {
	if timed, ok := o.(storage.WatchEventWithRecordTime); ok {
		o = timed.Unwrap()
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return
	}
	name := types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.newest[name]
	if kind == watch.Deleted {
		alike.Share(last, o)
		delete(s.newest, name)
		return
	}
	s.family.Join(o, last)
	if s.newest == nil {
		s.newest = map[types.NamespacedName]runtime.Object{}
	}
	s.newest[name] = o
}

// mapWatch passes on a watch's events as f makes them. Unlike watch.Filter it also ends what waits for a reader that is gone.
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
