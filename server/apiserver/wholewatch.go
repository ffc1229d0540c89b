// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/raftstore/etcdclient"
	"github.com/coracle-k8s/coracle/server/apiserver/watchbuffer"
)

// readUntil is how long after its request's end a watch may still be read. Upstream's handlers stop it much sooner,
// unless a client does not read what they write.
const readUntil = 10 * time.Second

// watchWhole begins a watch of the store that passes on every event up to its last one, without gaps. When its request
// ends, the store sends it no more events, and it ends after those that it was sent. Its own context ends when its
// reader stops it.
//
// Upstream's watch may have gaps at its end: when its context ends or it is stopped, each pending event may be dropped,
// and the next one may be passed on all the same (etcd3's watchChan.queueEvent). That does no harm if the reader stops
// reading. But upstream's handler goes on reading. At the end of the time that the client asked for, its own timer
// fires after the context's. When the context ends for another reason, the handler may notice after the store. Its
// client would then get an event without the one before, resume after it, and never receive the other. Upstream's watch
// cache prevents that (cacheWatcher.sendWatchCacheEvent), but only few resources have it (cachedResources).
//
// The handler of watches over WebSocket does not check the request at all. It ends with the watch.
//
// The number of events that are decoded before the reader takes them is limited (newStore).
//
// A client that accepts bookmarks is sent the store's revision now and then (raftstore.Options.ProgressInterval), as by
// the cache. Without that, a client whose objects do not change would resume from the revision at which its watch
// began. Later writes of other objects may have made that revision too old, and the client would have to list again.
func watchWhole(ctx context.Context, s storage.Interface, key string, opts storage.ListOptions) (watch.Interface, error) {
	opts.ProgressNotify = opts.Predicate.AllowWatchBookmarks
	ahead := &watchbuffer.Bound{}
	own := etcdclient.Paced(etcdclient.Until(context.WithoutCancel(ctx), ctx),
		etcdclient.Pace{Bytes: watchbuffer.Limit, Wait: ahead.WaitDecoded})
	own, cancel := context.WithCancel(watchbuffer.With(own, ahead))
	begun := context.AfterFunc(ctx, cancel)
	w, err := s.Watch(own, key, opts)
	if err != nil {
		cancel()
		return nil, err
	}
	if !begun() {
		w.Stop()
		return nil, ctx.Err()
	}
	end := &watchEnd{cancel: cancel}
	end.mu.Lock()
	defer end.mu.Unlock()
	end.stop = context.AfterFunc(ctx, end.requestEnded)
	return &wholeWatch{w, ahead.Follow(own, w.ResultChan()), end}, nil
}

// wholeWatch is a watch whose last events may be read for a while after its request has ended. It keeps no resources of
// the request once its reader has stopped it.
type wholeWatch struct {
	watch.Interface
	events <-chan watch.Event
	end    *watchEnd
}

// ResultChan implements watch.Interface.
func (w *wholeWatch) ResultChan() <-chan watch.Event { return w.events }

// Stop implements watch.Interface.
func (w *wholeWatch) Stop() {
	w.Interface.Stop()
	w.end.stopReading()
}

// watchEnd ends a watch, and releases what the watch holds of its request's context. The runtime may keep a stopped
// timer for a while, so the fields are cleared: the timer then refers to nothing.
type watchEnd struct {
	mu        sync.Mutex
	cancel    context.CancelFunc // nil after the watch has ended
	stop      func() bool        // stops waiting for the request's end
	readTimer *time.Timer        // runs from the request's end until the watch must not be read any more
}

func (e *watchEnd) requestEnded() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cancel != nil {
		e.readTimer = time.AfterFunc(readUntil, e.stopReading)
	}
}

func (e *watchEnd) stopReading() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cancel == nil {
		return
	}
	e.stop()
	if e.readTimer != nil {
		e.readTimer.Stop()
	}
	e.cancel()
	e.cancel, e.stop = nil, nil
}

func wholeStorage(config *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
	newObject, newList func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs,
	_ *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := newStore(config, newObject, newList, prefix)
	if err != nil {
		return raw, destroy, err
	}
	return wholeStore{raw}, destroy, nil
}

// wholeStore is a store whose watches have no gaps (watchWhole).
type wholeStore struct{ storage.Interface }

// Watch implements storage.Interface.
func (s wholeStore) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	return watchWhole(ctx, s.Interface, key, opts)
}
