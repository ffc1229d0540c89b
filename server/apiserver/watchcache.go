// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
)

const (
	// defaultCacheFrom is from how many watches of a resource as a whole on its cache pays (ADR 0072).
	defaultCacheFrom = 20
	// singlesForWhole is how many watches of one object weigh as much as one of the whole resource. They cost the store
	// no decoding that nobody wants, but four goroutines and two channels each, where the cache needs one.
	singlesForWhole = 10
	// cacheKept is how long a cache stays when half as many watches are left.
	cacheKept = 10 * time.Minute
	// sampleEvery is how often the revision is noted from which on the cache can serve a watch. What is noted is at
	// most three times as old, and the cache keeps 75 s (cacher.DefaultEventFreshDuration).
	sampleEvery = 20 * time.Second
	// tellAfter is how long after a cache was made the watches that the store serves are told where they are. After
	// half as long they end, to come back to the cache.
	tellAfter = 10 * time.Second
	// progressGroup is the key of the metadata by which the store tells them apart from other watches.
	progressGroup = "coracle-watches"
)

// cachingFrom puts upstream's watch cache in front of the store for each resource that so many watch as a whole, or ten
// times as many one object each, for as long as they do.
//
// Without it every watch decodes every event of its resource, and decrypts it, before it can tell whether its client
// wants it. That is less than a cache costs while few watch; with a thousand kubelets it is a thousand decodings of
// each pod's every change. The cache decodes once, finds the watches of one node's pods by an index, and encodes once
// for all. It holds every object of the resource in memory.
type cachingFrom struct {
	apigeneric.RESTOptionsGetter
	from      int
	kept      time.Duration // how long a cache stays when half as many are left
	tellAfter time.Duration
	log       *slog.Logger
}

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (c cachingFrom) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := c.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err == nil {
		o.Decorator = c.storage
	}
	return o, err
}

// storage is a apigeneric.StorageDecorator.
func (c cachingFrom) storage(config *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error),
	newObject, newList func() runtime.Object, attrs storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := newStore(config, newObject, newList, prefix)
	if err != nil {
		return raw, destroy, err
	}
	s := &watchedStorage{Interface: raw, from: c.from, kept: c.kept, tellAfter: c.tellAfter, resource: config.GroupResource.String(), now: time.Now, log: c.log.With("resource", config.GroupResource.String())}
	s.build = func() (*front, error) {
		made, err := cacher.NewCacherFromConfig(cacher.Config{
			Storage: &cachedStorage{Interface: s.Interface, listed: s.listed}, Versioner: storage.APIObjectVersioner{}, GroupResource: config.GroupResource, EventsHistoryWindow: config.EventsHistoryWindow,
			ResourcePrefix: prefix, KeyFunc: key, NewFunc: newObject, NewListFunc: newList, GetAttrsFunc: attrs, IndexerFuncs: triggers, Indexers: indexers, Codec: config.Codec,
		})
		if err != nil {
			return nil, err
		}
		delegator := cacher.NewCacheDelegator(made, s.Interface)
		return &front{Interface: delegator, ready: made.Ready, stop: func() { delegator.Stop(); made.Stop() }}, nil
	}
	return s, sync.OnceFunc(func() { s.close(); destroy() }), nil
}

// front is a cache before the store.
type front struct {
	storage.Interface
	ready func() bool
	stop  func()
	// inUse counts the requests that it is answering: a cache that is stopped fails them, or has them wait for what it
	// never hears.
	inUse sync.WaitGroup
}

// watchedStorage is a resource's storage, which counts its watches.
type watchedStorage struct {
	storage.Interface // the store
	from              int
	kept, tellAfter   time.Duration
	resource          string
	build             func() (*front, error)
	now               func() time.Time
	log               *slog.Logger

	mu     sync.Mutex
	open   int // what the watches weigh: one of the whole resource singlesForWhole, one of one object 1
	cache  *front
	drop   *time.Timer // set while too few watch
	move   *time.Timer // set while there are early watches that are to move to the cache
	closed bool
	early  map[*earlyWatch]struct{} // those that may be told where they are
	// The cache serves watches from oldest on; recent takes its place at the next sample.
	oldest, recent uint64
	sampled        time.Time
	lists          int // how often a cache has begun with a list: it reaches back to its last one at most
}

// inFront is the cache, if there is one that has everything, or the store. The cache stays at least until the returned
// function is called.
func (s *watchedStorage) inFront() (storage.Interface, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache != nil && s.cache.ready() {
		s.cache.inUse.Add(1)
		return s.cache, s.cache.inUse.Done
	}
	return s.Interface, func() {}
}

// Get implements storage.Interface.
func (s *watchedStorage) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	from, answered := s.inFront()
	defer answered()
	return from.Get(ctx, key, opts, out)
}

// GetList implements storage.Interface.
func (s *watchedStorage) GetList(ctx context.Context, key string, opts storage.ListOptions, out runtime.Object) error {
	from, answered := s.inFront()
	defer answered()
	return from.GetList(ctx, key, opts, out)
}

// Delete implements storage.Interface.
func (s *watchedStorage) Delete(ctx context.Context, key string, out runtime.Object, p *storage.Preconditions, validate storage.ValidateObjectFunc, known runtime.Object, opts storage.DeleteOptions) error {
	from, answered := s.inFront()
	defer answered()
	return from.Delete(ctx, key, out, p, validate, known, opts)
}

// GuaranteedUpdate implements storage.Interface.
func (s *watchedStorage) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool, p *storage.Preconditions, update storage.UpdateFunc, known runtime.Object) error {
	from, answered := s.inFront()
	defer answered()
	return from.GuaranteedUpdate(ctx, key, out, ignoreNotFound, p, update, known)
}

// Watch implements storage.Interface. A watch that begins earlier than the cache reaches back stays with the store,
// whose history is longer, so that its client need not list again.
func (s *watchedStorage) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	weight := 1
	if opts.Recursive {
		weight = singlesForWhole
	}
	s.begun(weight)
	context.AfterFunc(ctx, func() { s.ended(weight) })
	from, answered := s.inFront()
	defer answered() // what it sends after that it ends by itself when it goes
	if from != s.Interface && s.reaches(ctx, opts) {
		return from.Watch(ctx, key, opts)
	}
	end := endOf(ctx)
	if !opts.Predicate.AllowWatchBookmarks || end == nil {
		return watchWhole(ctx, s.Interface, key, opts)
	}
	w, err := watchWhole(s.group(ctx), s.Interface, key, opts)
	if err == nil {
		early := &earlyWatch{end: end}
		s.begunEarly(early)
		context.AfterFunc(ctx, func() { s.endedEarly(early) })
	}
	return w, err
}

// earlyWatch is a watch that the store serves because the cache was not there yet, or does not reach back to where it
// began.
type earlyWatch struct {
	end  context.CancelFunc // of its request
	told bool               // where it is
}

// group is ctx for what the store is to tell together where it is.
func (s *watchedStorage) group(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, progressGroup, s.resource)
}

func (s *watchedStorage) begunEarly(w *earlyWatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.early == nil {
		s.early = map[*earlyWatch]struct{}{}
	}
	s.early[w] = struct{}{}
	s.moveLater()
}

func (s *watchedStorage) endedEarly(w *earlyWatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.early, w)
}

// moveLater arranges that the early watches move where there is a cache; mu is held.
func (s *watchedStorage) moveLater() {
	if s.cache != nil && s.move == nil && len(s.early) > 0 && !s.closed {
		s.move = time.AfterFunc(s.tellAfter, s.tell)
	}
}

// tell has the store tell the early watches at which revision they are, which the cache reaches. Otherwise one whose
// own objects do not change would never get there: a kubelet's of its node's pods, say, for which the store decodes the
// pods of all nodes.
func (s *watchedStorage) tell() {
	ctx := s.group(context.Background())
	front, answered := s.inFront()
	answered()
	told := front != s.Interface && s.sample(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.move = nil
	if !told {
		s.moveLater()
		return
	}
	for w := range s.early {
		w.told = true
	}
	if s.RequestWatchProgress(ctx) != nil {
		return // the store is closed
	}
	s.move = time.AfterFunc(s.tellAfter/2, s.moveEarly)
}

// moveEarly ends those that have been told. Their clients watch on from where they are.
func (s *watchedStorage) moveEarly() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.early {
		if w.told && s.cache != nil {
			delete(s.early, w)
			w.end() // and not the store's watch, which its reader would go on reading (watchWhole)
		}
	}
	s.move = nil
	s.moveLater()
}

// pays is what watches weigh together from which on a cache pays; mu is held.
func (s *watchedStorage) pays() int { return s.from * singlesForWhole }

func (s *watchedStorage) begun(weight int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open += weight
	if s.drop != nil && s.open > s.pays()/2 {
		s.drop.Stop()
		s.drop = nil
	}
	if s.open < s.pays() || s.cache != nil || s.closed {
		return
	}
	made, err := s.build()
	if err != nil {
		s.log.Error("a watch cache could not be made; each watch goes on decoding for itself", "error", err)
		s.from *= 2 // not again at once
		return
	}
	s.log.Info("many watch this resource: a watch cache is put in front of the store", "watches", s.open)
	s.cache = made
	s.anew()
	s.moveLater()
}

// listed is called when a cache begins with a list, the first time or again, for which it is not ready.
func (s *watchedStorage) listed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.anew()
}

// anew forgets what was noted of a cache that is gone, or of one that has forgotten what it had; mu is held.
func (s *watchedStorage) anew() {
	s.oldest, s.sampled = 0, time.Time{}
	s.lists++
}

func (s *watchedStorage) ended(weight int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open -= weight
	if s.cache != nil && s.drop == nil && s.open <= s.pays()/2 && !s.closed {
		s.drop = time.AfterFunc(s.kept, s.dropCache)
	}
}

// dropCache ends the cache and the watches that it serves; their clients watch on from where they are.
func (s *watchedStorage) dropCache() {
	s.mu.Lock()
	if s.drop == nil || s.cache == nil {
		s.mu.Unlock()
		return // many came meanwhile
	}
	dropped := s.cache
	s.cache, s.drop = nil, nil
	s.stopMoving()
	s.mu.Unlock()
	dropped.inUse.Wait() // no more are added, as it is in front no longer
	s.log.Info("few watch this resource any more: its watch cache is gone")
	dropped.stop()
}

// stopMoving leaves the watches where they are; mu is held.
func (s *watchedStorage) stopMoving() {
	if s.move != nil {
		s.move.Stop()
		s.move = nil
	}
}

func (s *watchedStorage) close() {
	s.mu.Lock()
	last := s.cache
	s.cache, s.closed = nil, true
	if s.drop != nil {
		s.drop.Stop()
	}
	s.stopMoving()
	s.mu.Unlock()
	if last != nil {
		last.stop()
	}
}

// reaches says whether the cache tells what a watch asks for: whether it has everything after the resource version,
// and, where there is none, the state of now. For that it waits only if the client asks for initial events; else it
// would begin with an older state than the one in which the client may have seen the object before.
func (s *watchedStorage) reaches(ctx context.Context, opts storage.ListOptions) bool {
	from, err := s.Versioner().ParseResourceVersion(opts.ResourceVersion)
	if err != nil || from == 0 {
		return err == nil && (opts.ResourceVersion != "" || opts.SendInitialEvents != nil)
	}
	if !s.sample(ctx) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return from >= s.oldest
}

// sample notes the revision if that is due, and says whether it could.
func (s *watchedStorage) sample(ctx context.Context) bool {
	s.mu.Lock()
	last, lists := s.sampled, s.lists
	s.mu.Unlock()
	age := s.now().Sub(last)
	if age <= sampleEvery {
		return true
	}
	now, err := s.GetCurrentResourceVersion(ctx)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lists != lists: // it may be of before the list
		return false
	case !s.sampled.Equal(last): // somebody else was faster
		return true
	case age > 2*sampleEvery:
		s.recent = now
	}
	s.oldest, s.recent, s.sampled = s.recent, now, s.now()
	return true
}
