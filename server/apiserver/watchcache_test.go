// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// All sleeps of this file are of a synctest bubble: they take no time, and end when every goroutine waits.

// fakeStorage counts the watches that it was asked for.
type fakeStorage struct {
	storage.Interface
	watches  int
	revision uint64
	told     []string // the groups of watches that were to hear where they are
	get      func()   // what it does when it is asked for an object
	at       func()   // and for its revision; may be nil
}

func (f *fakeStorage) Get(context.Context, string, storage.GetOptions, runtime.Object) error {
	f.get()
	return nil
}

func (f *fakeStorage) Watch(context.Context, string, storage.ListOptions) (watch.Interface, error) {
	f.watches++
	return watch.NewFake(), nil
}

func (f *fakeStorage) RequestWatchProgress(ctx context.Context) error {
	of, _ := metadata.FromOutgoingContext(ctx)
	f.told = append(f.told, of.Get(progressGroup)...)
	return nil
}

func (f *fakeStorage) Versioner() storage.Versioner { return storage.APIObjectVersioner{} }

func (f *fakeStorage) GetCurrentResourceVersion(context.Context) (uint64, error) {
	revision := f.revision
	if f.at != nil {
		f.at()
	}
	return revision, nil
}

// watched is a resource whose store and cache are fakes.
type watched struct {
	*watchedStorage
	store, cache  *fakeStorage
	ready         bool
	made, stopped int
	refuse        error
}

func newWatched(from int) *watched {
	w := &watched{store: &fakeStorage{revision: 100}, cache: &fakeStorage{}, ready: true}
	w.watchedStorage = &watchedStorage{Interface: w.store, from: from, kept: cacheKept, tellAfter: tellAfter, resource: "pods", now: time.Now, log: slog.New(slog.DiscardHandler)}
	w.build = func() (*front, error) {
		w.made++
		return &front{Interface: w.cache, ready: func() bool { return w.ready }, stop: func() { w.stopped++ }}, w.refuse
	}
	return w
}

// begin opens a watch until the returned function is called.
func (w *watched) begin(t *testing.T, version uint64, whole bool) context.CancelFunc {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	begun, err := w.Watch(ctx, "/registry/pods", storage.ListOptions{ResourceVersion: strconv.FormatUint(version, 10), Recursive: whole})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(begun.Stop) // nobody reads it: it would go on for a while
	return end
}

// served says how many watches store and cache have been asked for.
func (w *watched) served(t *testing.T, what string, store, cache int) {
	t.Helper()
	if w.store.watches != store || w.cache.watches != cache {
		t.Errorf("%s: the store has %d watches and the cache %d, want %d and %d", what, w.store.watches, w.cache.watches, store, cache)
	}
}

func TestCacheIsMadeWhenManyWatch(t *testing.T) {
	w := newWatched(3)
	for range 9 {
		w.begin(t, 100, false)
	}
	w.begin(t, 100, true)
	w.begin(t, 100, true)
	w.served(t, "nine of one object, two of all", 11, 0)
	w.begin(t, 100, true)
	w.begin(t, 100, true)
	w.served(t, "four of all", 11, 2)
	w.begin(t, 100, false)
	w.served(t, "one more of one object", 11, 3)
	if w.made != 1 {
		t.Errorf("%d caches", w.made)
	}
	w.ready = false
	w.begin(t, 100, true)
	w.begin(t, 100, false)
	w.served(t, "while the cache is not ready", 13, 3)
}

func TestCacheIsMadeWhenVeryManyWatchOneObjectEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(3)
		var ends []context.CancelFunc
		for range 29 {
			ends = append(ends, w.begin(t, 100, false))
		}
		w.served(t, "29 of one object", 29, 0)
		ends = append(ends, w.begin(t, 100, false))
		w.served(t, "thirty of one object", 29, 1)
		for _, end := range ends[:14] {
			end()
		}
		synctest.Wait()
		time.Sleep(2 * cacheKept)
		if w.stopped != 0 {
			t.Error("the cache went while 16 watch")
		}
		ends[14]()
		synctest.Wait()
		time.Sleep(cacheKept + time.Second) // fake time
		if w.stopped != 1 {
			t.Errorf("with 15 watches it was stopped %d times", w.stopped)
		}
	})
}

func TestEarlierWatchesStayWithTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(1)
		w.begin(t, 99, true)
		w.served(t, "from before the cache", 1, 0)
		w.begin(t, 100, true)
		w.begin(t, 0, true)
		w.served(t, "from now on", 1, 2)
		// The revision from which on the cache is asked follows, at least twenty and at most sixty seconds behind.
		stored, cached := 1, 2
		at := map[int]uint64{0: 100}
		for second := 1; second < 300; second++ {
			time.Sleep(time.Second)
			w.store.revision++
			at[second] = w.store.revision
			if second%5 > 0 {
				continue
			}
			w.begin(t, w.store.revision-10, true)
			if second >= 10 {
				cached++
			} else {
				stored++
			}
			w.served(t, "from ten seconds ago", stored, cached)
			if second > 70 {
				w.begin(t, w.store.revision-61, true)
				stored++
				w.served(t, "from 61 seconds ago", stored, cached)
			}
		}
		time.Sleep(5 * time.Minute) // nobody asks meanwhile
		w.store.revision += 1000
		w.begin(t, w.store.revision-1, true)
		w.served(t, "after five minutes", stored+1, cached)
	})
}

// TestWatchesFromBeforeACachesListStayWithTheStore: a cache that lists once more, as after half a minute without a
// leader, has forgotten what was before; and where one takes another's place while a revision is asked for, that may be
// of before its list.
func TestWatchesFromBeforeACachesListStayWithTheStore(t *testing.T) {
	w := newWatched(1)
	w.begin(t, 100, true)
	w.begin(t, 100, true)
	w.served(t, "from the first list on", 0, 2)
	w.store.revision = 200
	w.listed()
	w.begin(t, 150, true)
	w.served(t, "from before the second list", 1, 2)
	w.begin(t, 200, true)
	w.served(t, "from the second list on", 1, 3)

	w.sampled = time.Time{}
	w.store.at = func() {
		w.store.revision = 300
		w.listed()
		w.store.at = nil
	}
	w.begin(t, 200, true) // which hears of revision 200 when the list is of 300
	w.served(t, "while the cache lists", 2, 3)
	w.begin(t, 299, true)
	w.served(t, "from before the third list", 3, 3)
	w.begin(t, 300, true)
	w.served(t, "from the third list on", 3, 4)
}

// TestWatchesThatComeTogetherAreServedByTheCache: those that find the noted revision old at one time note the next one
// once.
func TestWatchesThatComeTogetherAreServedByTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(1)
		w.begin(t, 100, true)
		w.served(t, "from the list on", 0, 1)
		time.Sleep(sampleEvery + time.Second) // fake time
		w.store.revision = 200
		answer := make(chan struct{})
		w.store.at = func() { <-answer }
		began := make(chan error)
		for range 2 {
			go func() {
				_, err := w.Watch(t.Context(), "/registry/pods", storage.ListOptions{ResourceVersion: "150", Recursive: true})
				began <- err
			}()
		}
		synctest.Wait()
		close(answer)
		for range 2 {
			if err := <-began; err != nil {
				t.Error(err)
			}
		}
		w.served(t, "from a moment ago", 0, 3)
	})
}

// TestEarlyWatchesMoveToTheCache: watches that the store serves hear where they are when there is a cache, and end,
// each once.
func TestEarlyWatchesMoveToTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(3)
		early := func(bookmarks bool) (moved func() bool, end context.CancelFunc) {
			t.Helper()
			ctx, end := context.WithCancel(t.Context())
			ctx = withEnd(ctx, end)
			o := storage.ListOptions{ResourceVersion: "50", Recursive: true}
			o.Predicate.AllowWatchBookmarks = bookmarks
			before := w.store.watches
			begun, err := w.Watch(ctx, "/registry/pods", o)
			if err != nil || w.store.watches != before+1 {
				t.Fatalf("%v; the store has %d watches, want %d", err, w.store.watches, before+1)
			}
			t.Cleanup(begun.Stop) // nobody reads it: it would go on for a while
			return func() bool { return ctx.Err() != nil }, end
		}
		wait := func(d time.Duration) {
			time.Sleep(d) // fake time
			synctest.Wait()
		}
		first, _ := early(true)
		wait(time.Hour)
		if first() || len(w.store.told) != 0 {
			t.Error("a watch moved without a cache")
		}
		silent, _ := early(false)
		_, end := early(true)
		end()
		w.ready = false
		third, _ := early(true)
		wait(3 * tellAfter)
		if w.made != 1 || first() || len(w.store.told) != 0 {
			t.Errorf("%d caches; a watch moved before the cache was ready", w.made)
		}
		w.ready = true
		wait(tellAfter)
		if got := fmt.Sprint(w.store.told); got != "[pods]" || first() {
			t.Errorf("told: %s; moved: %t", got, first())
		}
		for range 3 {
			w.begin(t, 100, true) // so that the cache stays
		}
		between, _ := early(true) // has not been told
		wait(tellAfter / 2)
		if !first() || !third() || silent() || between() {
			t.Errorf("moved: %t, %t, and without bookmarks %t, not told yet %t", first(), third(), silent(), between())
		}
		wait(2 * tellAfter)
		if !between() || len(w.store.told) != 2 {
			t.Errorf("a later one moved: %t; told: %v", between(), w.store.told)
		}
		wait(time.Hour)
		if len(w.store.told) != 2 || len(w.early) != 0 {
			t.Errorf("told: %v, though nobody is left: %v", w.store.told, w.early)
		}
		last, _ := early(true) // too old for the cache
		w.close()
		wait(time.Hour)
		if last() || len(w.store.told) != 2 {
			t.Error("a watch moved after the end")
		}
	})
}

// TestQuietWatchMovesToTheCache: with a real store, a watch that hears of nothing is told where it is, ends, and goes
// on in the cache with the next event.
func TestQuietWatchMovesToTheCache(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.CacheFrom, o.cacheTells = 3, 200*time.Millisecond
	s := f.start(t, o)
	templates := client(t, s.admin()).CoreV1().PodTemplates("default")
	list, err := templates.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(version string) watch.Interface {
		t.Helper()
		w, err := templates.Watch(t.Context(), metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	var all []watch.Interface
	for range 4 {
		all = append(all, begin(list.ResourceVersion))
	}
	moved := 0
	for _, w := range all[:3] { // the fourth may be the cache's
		var at string
		for e := range w.ResultChan() { // a second one if the store's interval is over in this moment
			if e.Type != watch.Bookmark {
				t.Fatalf("instead of a bookmark: %v", e)
			}
			if at, err = meta.NewAccessor().ResourceVersion(e.Object); err != nil {
				t.Fatal(err)
			}
		}
		if at == "" {
			t.Fatal("it ended and was not told where it is")
		}
		w = begin(at)
		template := &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("t%d", moved)}}
		template.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
		if _, err := templates.Create(t.Context(), template, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for e := range w.ResultChan() {
			if got, ok := e.Object.(*corev1.PodTemplate); ok && e.Type == watch.Added && got.Name == template.Name {
				moved++
				break
			}
		}
		w.Stop()
	}
	if moved != 3 {
		t.Errorf("%d watches went on", moved)
	}
}

// TestWatchesOfTheStateOfNowAreServedByTheStore: a client that names no version wants to hear of no older state than it
// may know. The cache lags behind the store, and waits for it only for clients that ask for initial events.
func TestWatchesOfTheStateOfNowAreServedByTheStore(t *testing.T) {
	w := newWatched(1)
	w.begin(t, 100, true)
	w.served(t, "from a version", 0, 1)
	yes, no := true, false
	store, cache := 0, 1
	for _, c := range []struct {
		opts   storage.ListOptions
		cached bool
	}{
		{storage.ListOptions{}, false},
		{storage.ListOptions{Recursive: true}, false},
		{storage.ListOptions{ResourceVersion: "0"}, true},
		{storage.ListOptions{SendInitialEvents: &yes}, true},
		{storage.ListOptions{SendInitialEvents: &no}, true},
		{storage.ListOptions{ResourceVersion: "0", SendInitialEvents: &yes}, true},
		{storage.ListOptions{ResourceVersion: "nonsense", SendInitialEvents: &yes}, false},
	} {
		if _, err := w.Watch(t.Context(), "/registry/pods", c.opts); err != nil {
			t.Fatal(err)
		}
		if c.cached {
			cache++
		} else {
			store++
		}
		w.served(t, fmt.Sprintf("%+v", c.opts), store, cache)
	}
}

// TestACacheGoesWhenItHasAnswered: what it is asked for when too few watch it answers before it goes.
func TestACacheGoesWhenItHasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(1)
		end := w.begin(t, 100, true)
		answer := make(chan struct{})
		w.cache.get = func() { <-answer }
		got := make(chan error)
		go func() { got <- w.Get(t.Context(), "/registry/pods/a/b", storage.GetOptions{}, nil) }()
		synctest.Wait()
		end()
		time.Sleep(cacheKept + time.Second) // fake time
		if w.stopped != 0 {
			t.Error("it was stopped while it was asked for an object")
		}
		if front, answered := w.inFront(); front != w.store {
			t.Error("it is still in front of the store")
		} else {
			answered()
		}
		close(answer)
		if err := <-got; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if w.stopped != 1 {
			t.Errorf("when it had answered it was stopped %d times", w.stopped)
		}
	})
}

func TestCacheGoesWhenFewWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(4)
		var ends []context.CancelFunc
		for range 4 {
			ends = append(ends, w.begin(t, 100, true))
		}
		ends[0]()
		synctest.Wait()
		time.Sleep(2 * cacheKept)
		if w.stopped != 0 {
			t.Error("it went while three watch")
		}
		ends[1]()
		synctest.Wait()
		time.Sleep(cacheKept - time.Second)
		w.begin(t, 100, true) // the third again
		time.Sleep(2 * cacheKept)
		if w.stopped != 0 {
			t.Error("it went although watches came back")
		}
		ends[2]()
		ends[3]()
		synctest.Wait()
		time.Sleep(cacheKept + time.Second) // fake time
		if w.stopped != 1 {
			t.Errorf("it was stopped %d times", w.stopped)
		}
		before := w.store.watches
		w.begin(t, 100, true)
		if w.store.watches != before+1 {
			t.Error("the store does not serve again")
		}
		for range 2 {
			w.begin(t, 100, true)
		}
		if w.made != 2 {
			t.Errorf("%d caches were made", w.made)
		}
		w.close()
		if w.stopped != 2 {
			t.Error("the last cache was not stopped")
		}
	})
}

func TestStoreServesWhereACacheCannotBeMade(t *testing.T) {
	w := newWatched(2)
	w.refuse = errors.New("no room")
	for range 5 {
		w.begin(t, 100, true)
	}
	w.served(t, "without a cache", 5, 0)
	if w.made != 2 { // with the second, and with the fourth
		t.Errorf("it was tried %d times", w.made)
	}
}

// TestServerWhoseResourcesAreCached runs the server's own tests where the first watch of a resource brings a cache.
func TestServerWhoseResourcesAreCached(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.CacheFrom = 1
	s := f.start(t, o)
	for name, test := range map[string]func(*testing.T, *running){
		"CreateWatchDelete": testCreateWatchDelete, "LoopbackWatch": testLoopbackWatch, "ServerSideApply": testServerSideApply, "CustomResources": testCustomResources,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

// TestCacheComesBack: upstream's cache over a real store goes when few watch, and another one comes when many watch
// again.
func TestCacheComesBack(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	var log testenv.Log
	o.CacheFrom, o.cacheKept, o.Logger = 4, 100*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
	s := f.start(t, o)
	c := client(t, s.admin())
	await := func(what string, want int) {
		t.Helper()
		eventually(t, what, func() error {
			if n := strings.Count(log.String(), what); n != want {
				return fmt.Errorf("it was said %d times, want %d", n, want)
			}
			return nil
		})
	}
	for round := 1; round <= 3; round++ {
		ctx, end := context.WithCancel(t.Context())
		for range 5 {
			if _, err := c.CoreV1().PodTemplates("default").Watch(ctx, metav1.ListOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		const of = " resource=podtemplates"
		await("a watch cache is put in front of the store\""+of, round)
		end()
		await("its watch cache is gone\""+of, round)
	}
	if n := strings.Count(log.String(), "could not be made"); n > 0 {
		t.Errorf("%d caches could not be made", n)
	}
}
