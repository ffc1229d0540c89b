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

// readUntil is how long after its request's end a watch may still be read. Upstream's handlers stop it much
// sooner, unless a client does not take what they write.
const readUntil = 10 * time.Second

// watchWhole begins a watch of the store that leaves nothing out before what it passes on. When its request ends, the
// store sends it no more, and it ends behind what it has been sent; its own context ends when its reader stops it.
//
// Upstream's, when its context ends or it is stopped, gives each event that is under way a chance to be dropped, and
// the next one a chance to be passed on all the same (etcd3's watchChan.queueEvent). That does no harm if no reader
// goes on reading. But upstream's handler does: at the end of the time that the client asked for its own timer fires
// after the context's, and of what else ends a context it may hear after the store has. Its client would be sent an
// event and not of the one before, go on behind it, and never hear of the other. Upstream's watch cache takes care of
// that (cacheWatcher.sendWatchCacheEvent), which we have in front of few resources (cachedResources).
//
// The handler of watches over WebSocket does not look at the request at all: it ends with the watch.
//
// What is decoded before the reader takes it is bounded (newStore).
//
// A client that takes bookmarks is sent now and then how far the store is (raftstore.Options.ProgressInterval), as by
// the cache. Otherwise one whose objects did not change would go on, when its watch is over, from where it began, which
// is no history any more if anybody else wrote meanwhile, and would list again.
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
	end.stop = context.AfterFunc(ctx, end.request)
	return &wholeWatch{w, ahead.Follow(own, w.ResultChan()), end}, nil
}

// wholeWatch is a watch whose end may be read for a while after its request has ended, and that keeps nothing of it any
// more when its reader has stopped it.
type wholeWatch struct {
	watch.Interface
	out <-chan watch.Event
	end *watchEnd
}

// ResultChan implements watch.Interface.
func (w *wholeWatch) ResultChan() <-chan watch.Event { return w.out }

// Stop implements watch.Interface.
func (w *wholeWatch) Stop() {
	w.Interface.Stop()
	w.end.reader()
}

// watchEnd ends what a watch has of its request's context. A timer that is stopped may be kept for a while by the
// runtime: so it leads to nothing then.
type watchEnd struct {
	mu     sync.Mutex
	cancel context.CancelFunc // nil when that is done
	stop   func() bool        // that the request ends
	late   *time.Timer        // from the request's end until it is not read any more
}

func (e *watchEnd) request() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cancel != nil {
		e.late = time.AfterFunc(readUntil, e.reader)
	}
}

func (e *watchEnd) reader() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cancel == nil {
		return
	}
	e.stop()
	if e.late != nil {
		e.late.Stop()
	}
	e.cancel()
	e.cancel, e.stop = nil, nil
}

// wholeStorage is a apigeneric.StorageDecorator.
func wholeStorage(config *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
	newObject, newList func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs,
	_ *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := newStore(config, newObject, newList, prefix)
	if err != nil {
		return raw, destroy, err
	}
	return wholeStore{raw}, destroy, nil
}

// wholeStore is a store whose watches are whole.
type wholeStore struct{ storage.Interface }

// Watch implements storage.Interface.
func (s wholeStore) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	return watchWhole(ctx, s.Interface, key, opts)
}
