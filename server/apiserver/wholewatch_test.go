// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/features"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"

	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// told is an event as tests compare it.
func told(e watch.Event) (text string, version uint64, err error) {
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return "", 0, fmt.Errorf("%s %v", e.Type, e.Object)
	}
	version, err = strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	return fmt.Sprintf("%s %s/%s %d %v %v", e.Type, m.GetNamespace(), m.GetName(), version, m.GetLabels(), m.GetAnnotations()), version, err
}

// read has each event of a watch heard, as upstream's handler: it goes on for a moment after the request's context has
// ended, since its own timer has begun after it, and stops the watch then.
func read(ctx context.Context, w watch.Interface, moment time.Duration, hear func(watch.Event)) {
	late := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(moment, func() { close(late) }) })
	defer w.Stop()
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return
			}
			hear(e)
		case <-late:
			return
		}
	}
}

// late is a client of the store whose watches pass on some events at once and the others in the moment in which they
// end.
type late struct {
	clientv3.Watcher
	passed chan struct{} // has a value when they have; its capacity is 1, for one watch at a time
}

const atOnce = 3

// Watch implements clientv3.Watcher.
func (l late) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	in, out := l.Watcher.Watch(following, key, opts...), make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		defer cancel()
		passed := 0
		for r := range in {
			for _, e := range r.Events {
				if passed++; passed > atOnce {
					<-ctx.Done()
				}
				one := r
				one.Events = []*clientv3.Event{e}
				out <- one // which upstream's reader takes until the channel is closed
			}
			if passed > atOnce {
				l.passed <- struct{}{}
				return
			}
		}
	}()
	return out
}

// decoding is a transformer that changes nothing and tells when an object is decoded.
type decoding func()

// TransformFromStorage implements value.Transformer.
func (d decoding) TransformFromStorage(_ context.Context, data []byte, _ value.Context) (out []byte, stale bool, err error) {
	d()
	return data, false, nil
}

// TransformToStorage implements value.Transformer.
func (d decoding) TransformToStorage(_ context.Context, data []byte, _ value.Context) ([]byte, error) {
	return data, nil
}

// TestWatchLeavesNothingOutAtItsEnd: what a client has heard when its request ends in the midst of events is what a
// watch without an end tells first.
func TestWatchLeavesNothingOutAtItsEnd(t *testing.T) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.ConcurrentWatchObjectDecode, false) // as the server has it
	f := newFixture(t)
	plain := newPlainStorage()
	b := both{store: newConfigMaps(t, plain), make: newConfigMap}
	r := rand.New(rand.NewPCG(1, 0))
	first := b.change(t, r)
	const events = 12
	for range events {
		b.change(t, r)
	}
	var all []string
	whole, err := b.store.Watch(t.Context(), &metainternal.ListOptions{ResourceVersion: first})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Stop()
	for range events {
		text, _, err := told(<-whole.ResultChan())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	passed := make(chan struct{}, 1)
	upstream.Install(func() *kubernetes.Client {
		c := f.store.Client()
		c.Watcher = late{c.Watcher, passed}
		return c
	})
	var decoded atomic.Int32
	var ends atomic.Pointer[func()]
	caching := newCaching(1000, time.Hour)
	caching.RESTOptionsGetter.(plainStorage).config.Transformer = decoding(func() {
		if decoded.Add(1) != atOnce || ends.Load() == nil {
			return
		}
		(*ends.Load())() // while more is under way
		select {
		case <-passed:
			passed <- struct{}{}
		case <-time.After(2 * time.Millisecond): // it is not, since the store's watch has not ended
		}
	})
	for name, store := range map[string]*genericregistry.Store{
		"with a cache at times": newConfigMaps(t, caching),
		"never with a cache":    newConfigMaps(t, wholeWatches{caching.RESTOptionsGetter}),
	} {
		t.Run(name, func(t *testing.T) {
			heard := 0
			for range 100 {
				ctx, end := context.WithCancel(t.Context())
				decoded.Store(0)
				began := make(chan struct{})
				ends.Store(new(func() {
					<-began
					end()
				}))
				w, err := store.Watch(ctx, &metainternal.ListOptions{ResourceVersion: first})
				if err != nil {
					t.Fatal(err)
				}
				close(began)
				var got []string
				read(ctx, w, 5*time.Millisecond, func(e watch.Event) {
					text, _, err := told(e)
					if err != nil {
						t.Error(err)
					}
					got = append(got, text)
				})
				for range w.ResultChan() { // until it has ended
				}
				<-passed
				if heard += len(got); len(got) > len(all) || !slices.Equal(got, all[:len(got)]) {
					t.Fatalf("told:\n%s\nof\n%s", strings.Join(got, "\n"), strings.Join(all, "\n"))
				}
			}
			if heard == 0 {
				t.Error("none was told anything")
			}
		})
	}
}

// TestWatchEndsForWhoReadsOn: whoever reads a watch until it ends, as upstream's handler does over WebSocket, does not
// wait for longer than the request that it belongs to, and is told the beginning of what happened. Objects change all
// the time.
func TestWatchEndsForWhoReadsOn(t *testing.T) {
	newFixture(t)
	plain := newPlainStorage()
	b := both{store: newConfigMaps(t, plain), make: newConfigMap}
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	first := b.change(t, r)
	whole, err := b.store.Watch(t.Context(), &metainternal.ListOptions{ResourceVersion: first})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Stop()
	var writing sync.WaitGroup
	writes, end := context.WithCancel(t.Context())
	defer writing.Wait()
	defer end()
	writing.Go(func() {
		for r := rand.New(rand.NewPCG(seed, 1)); writes.Err() == nil; {
			b.change(t, r)
		}
	})
	from, _ := strconv.ParseUint(first, 10, 64)
	for name, store := range map[string]*genericregistry.Store{
		"with a cache at times": newConfigMaps(t, newCaching(1000, time.Hour)),
		"never with a cache":    newConfigMaps(t, wholeWatches{plain}),
	} {
		t.Run(name, func(t *testing.T) {
			for range 30 {
				ctx, end := context.WithCancel(t.Context())
				t.Cleanup(end)
				w, err := store.Watch(ctx, &metainternal.ListOptions{ResourceVersion: strconv.FormatUint(from, 10)})
				if err != nil {
					t.Fatal(err)
				}
				ends, heard := r.IntN(20), 0
				for e := range w.ResultChan() {
					text, _, err := told(e)
					if err != nil {
						t.Fatal(err)
					}
					want, version, err := told(<-whole.ResultChan())
					if err != nil {
						t.Fatal(err)
					}
					if from = version; text != want {
						t.Fatalf("event %d of a watch whose request has ended at %d is\n%s\nand should be\n%s", heard, ends, text, want)
					}
					if heard++; heard > ends {
						end()
					}
				}
				if !ended(w) {
					t.Fatal("its request has ended long ago")
				}
				w.Stop()
			}
		})
	}
}

// ended says whether a watch that is at its end is there by itself, and not for want of a reader.
func ended(w watch.Interface) bool {
	end := w.(*wholeWatch).end
	end.mu.Lock()
	defer end.mu.Unlock()
	return end.cancel != nil
}

// breaking is a store that can take from a watch cache what it has: as after half a minute without a leader, or when a
// server that was cut off is sent a snapshot.
type breaking struct {
	storage.Interface
	mu    sync.Mutex
	watch *broken
}

type broken struct {
	watch.Interface
	out   chan watch.Event
	wrong chan struct{}
	stop  context.CancelFunc
}

func (b *broken) ResultChan() <-chan watch.Event { return b.out }
func (b *broken) Stop()                          { b.stop(); b.Interface.Stop() }

// Watch implements storage.Interface.
func (s *breaking) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	w, err := s.Interface.Watch(ctx, key, opts)
	if err != nil || !opts.RecordTimestamps { // it is no cache's
		return w, err
	}
	stopped, stop := context.WithCancel(ctx)
	b := &broken{Interface: w, out: make(chan watch.Event), wrong: make(chan struct{}), stop: stop}
	go func() {
		defer close(b.out)
		for {
			var e watch.Event
			var ok bool
			select {
			case e, ok = <-w.ResultChan():
			case <-b.wrong:
				e, ok = watch.Event{Type: watch.Error, Object: &metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: 410}}, true
			case <-stopped.Done():
			}
			if !ok {
				return
			}
			select {
			case b.out <- e:
			case <-stopped.Done():
				return
			}
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = b
	return b, nil
}

// breakWatch makes the cache list once more.
func (s *breaking) breakWatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch != nil {
		close(s.watch.wrong)
		s.watch = nil
	}
}

// resuming is a client that watches on where its last watch ended.
type resuming struct {
	what      string
	namespace string
	options   metainternal.ListOptions
	last      uint64
	moved     atomic.Int32 // how often the server ended its watch

	mu     sync.Mutex
	events []string
	wrong  []string
}

func (c *resuming) hear(e watch.Event) {
	text, version, err := told(e)
	c.note(e.Type, text, version, err)
}

func (c *resuming) note(kind watch.EventType, text string, version uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.wrong = append(c.wrong, err.Error())
		return
	case version < c.last || version == c.last && kind != watch.Bookmark:
		c.wrong = append(c.wrong, fmt.Sprintf("%s, after %d", text, c.last))
	}
	c.last = version
	if kind != watch.Bookmark {
		c.events = append(c.events, text)
	}
}

// watch begins watches until ctx ends, in which it goes on until few says that it is one of those that pause for a
// while.
func (c *resuming) watch(ctx context.Context, b both, r *rand.Rand, pauses func() bool) {
	for ctx.Err() == nil {
		o := c.options
		o.ResourceVersion, o.AllowWatchBookmarks = strconv.FormatUint(c.last, 10), r.IntN(6) > 0
		of, end := context.WithTimeout(ctx, time.Duration(1+r.IntN(80))*time.Millisecond)
		of = withEnd(of, end)
		w, err := b.cached.Watch(b.in(of, c.namespace), &o)
		switch {
		case err == nil:
			read(of, w, time.Duration(r.IntN(500))*time.Microsecond, c.hear)
		case of.Err() == nil && apierrors.IsTooManyRequests(err): // the cache has just begun to list once more
		case of.Err() == nil:
			c.mu.Lock()
			c.wrong = append(c.wrong, err.Error())
			c.mu.Unlock()
		}
		if errors.Is(of.Err(), context.Canceled) && ctx.Err() == nil {
			c.moved.Add(1)
		}
		end()
		for pauses() && ctx.Err() == nil {
			time.Sleep(time.Millisecond) // until many watch again
		}
	}
}

func (c *resuming) reaches(version uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last < version {
		return fmt.Errorf("it is at %d of %d", c.last, version)
	}
	return nil
}

func (c *resuming) differs(want *resuming) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	want.mu.Lock()
	defer want.mu.Unlock()
	for i := range c.events {
		if i >= len(want.events) || c.events[i] != want.events[i] {
			return fmt.Errorf("%s: it has heard\n%s\nand should have heard\n%s", c.what, strings.Join(c.events[max(0, i-3):], "\n"), strings.Join(want.events[min(max(0, i-3), len(want.events)):], "\n"))
		}
	}
	if len(c.events) < len(want.events) || len(c.wrong)+len(want.wrong) > 0 {
		return fmt.Errorf("%s: it has heard %d events of %d; wrong are %q", c.what, len(c.events), len(want.events), append(c.wrong, want.wrong...))
	}
	return nil
}

// TestMovingClientsHearEverythingOnce: watch caches come, go and begin anew, watches move to them and reach the end of
// their time, while objects change; each client hears what one hears whose watch never ends, and none has to list
// again.
func TestMovingClientsHearEverythingOnce(t *testing.T) {
	newFixture(t)
	seed := testenv.Seed(t)
	for name, b := range newBoth(t, 4, 5*time.Millisecond, rand.New(rand.NewPCG(seed, 400))) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b.move(t, seed)
		})
	}
}

func (b both) move(t *testing.T, seed uint64) {
	s := b.watched()
	flaky := &breaking{Interface: s.Interface}
	s.Interface, s.tellAfter = flaky, 4*time.Millisecond
	var caches atomic.Int32
	build := s.build
	s.build = func() (*front, error) {
		caches.Add(1)
		return build()
	}
	first, err := b.store.Storage.Storage.GetCurrentResourceVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var clients, truths, writers sync.WaitGroup
	defer truths.Wait()
	defer clients.Wait()
	defer cancel()
	var few atomic.Bool
	var all, want []*resuming
	for i := range 14 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		c := b.client(r, first)
		truth := &resuming{last: first}
		w, err := b.store.Watch(b.in(ctx, c.namespace), func() *metainternal.ListOptions {
			o := c.options
			o.ResourceVersion = strconv.FormatUint(first, 10)
			return &o
		}())
		if err != nil {
			t.Fatal(err)
		}
		truths.Go(func() { read(ctx, w, 0, truth.hear) })
		clients.Go(func() { c.watch(ctx, b, r, func() bool { return i > 0 && few.Load() }) })
		all, want = append(all, c), append(want, truth)
	}
	lists := 0
	clients.Go(func() { lists = b.page(t, ctx, rand.New(rand.NewPCG(seed, 300))) })
	moves := func() (n int32) {
		for _, c := range all {
			n += c.moved.Load()
		}
		return n
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		// A fast machine has written everything before a second cache came.
		for round, begun := uint64(0), time.Now(); round == 0 || (caches.Load() < 2 || moves() == 0) && time.Since(begun) < patience && !t.Failed(); round++ {
			for i := range 3 {
				writers.Go(func() { b.write(t, rand.New(rand.NewPCG(seed, 100+3*round+uint64(i))), i) })
			}
			writers.Wait()
		}
	}()
	r := rand.New(rand.NewPCG(seed, 200))
	for going := true; going; {
		few.Store(r.IntN(3) == 0)
		if r.IntN(4) == 0 {
			flaky.breakWatch()
		}
		select {
		case <-written:
			going = false
		case <-time.After(time.Duration(r.IntN(100)) * time.Millisecond): // in which some is written
		}
	}
	few.Store(false)
	final, err := b.store.Storage.Storage.GetCurrentResourceVersion(ctx)
	if err == nil {
		err = b.store.Storage.Storage.RequestWatchProgress(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range all {
		eventually(t, "the store's own watch tells everything", func() error { return want[i].reaches(final) })
		eventually(t, "a client hears everything", func() error { return c.differs(want[i]) })
	}
	cancel()
	clients.Wait()
	truths.Wait()
	heard := 0
	for i, c := range all {
		heard += len(c.events)
		if err := c.differs(want[i]); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d events heard, %d caches, %d watches moved, %d lists", heard, caches.Load(), moves(), lists)
	if caches.Load() < 2 || moves() == 0 || heard == 0 || lists == 0 {
		t.Error("too little happened")
	}
}

// client is one that asks for everything, or for some.
func (b both) client(r *rand.Rand, from uint64) *resuming {
	c := &resuming{last: from}
	var terms []fields.Selector
	if r.IntN(4) == 0 {
		terms = append(terms, fields.OneTermEqualSelector("metadata.name", "o"+strconv.Itoa(r.IntN(3))+"-1"))
	}
	if b.store.DefaultQualifiedResource.Resource == "pods" && r.IntN(2) == 0 {
		terms = append(terms, fields.OneTermEqualSelector("spec.nodeName", "n"+strconv.Itoa(r.IntN(2))))
	}
	if len(terms) > 0 {
		c.options.FieldSelector = fields.AndSelectors(terms...)
	}
	if r.IntN(4) == 0 {
		c.options.LabelSelector = labels.SelectorFromSet(labels.Set{"l": "1"})
	}
	if r.IntN(3) == 0 && !b.clusterWide {
		c.namespace = "ns" + strconv.Itoa(r.IntN(2))
	}
	c.what = fmt.Sprintf("namespace %q, fields %v, labels %v", c.namespace, c.options.FieldSelector, c.options.LabelSelector)
	return c
}

// page lists in pages until ctx ends, each of which may come from another place, and compares them with the store's
// list of that version.
func (b both) page(t *testing.T, ctx context.Context, r *rand.Rand) (lists int) {
	for ctx.Err() == nil {
		c := b.client(r, 0)
		o := c.options
		o.Limit = int64(1 + r.IntN(3))
		var pages []string
		version := ""
		for {
			list, err := b.cached.List(b.in(ctx, c.namespace), &o)
			if apierrors.IsTooManyRequests(err) {
				continue
			}
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("%s, in pages: %v", c.what, err)
				}
				return lists
			}
			m, err := meta.ListAccessor(list)
			if err != nil {
				t.Error(err)
				return lists
			}
			pages = append(pages, listed(t, list)...)
			if version == "" {
				version = m.GetResourceVersion()
			} else if version != m.GetResourceVersion() {
				t.Errorf("%s: a page of version %s and one of %s", c.what, version, m.GetResourceVersion())
			}
			if o.Continue = m.GetContinue(); o.Continue == "" {
				break
			}
		}
		exact := c.options
		exact.ResourceVersion, exact.ResourceVersionMatch = version, metav1.ResourceVersionMatchExact
		list, err := b.store.List(b.in(ctx, c.namespace), &exact)
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("%s, at once: %v", c.what, err)
			}
			return lists
		}
		if whole := listed(t, list); !slices.Equal(pages, whole) {
			t.Errorf("%s, version %s: in pages\n%s\nat once\n%s", c.what, version, pages, whole)
			return lists
		}
		lists++
	}
	return lists
}

func listed(t *testing.T, list runtime.Object) (names []string) {
	err := meta.EachListItem(list, func(o runtime.Object) error {
		m, err := meta.Accessor(o)
		if err == nil {
			names = append(names, fmt.Sprintf("%s/%s %s %v", m.GetNamespace(), m.GetName(), m.GetResourceVersion(), m.GetLabels()))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return names
}

// write makes, changes and deletes objects of a writer's own.
func (b both) write(t *testing.T, r *rand.Rand, writer int) {
	for range 250 {
		ns, name := "ns"+strconv.Itoa(writer%2), fmt.Sprintf("o%d-%d", writer, r.IntN(3))
		ctx := b.in(t.Context(), ns)
		was, err := b.store.Get(ctx, name, &metav1.GetOptions{})
		switch {
		case err != nil:
			o := b.make(ns, name)
			m, _ := meta.Accessor(o)
			m.SetLabels(map[string]string{"l": strconv.Itoa(r.IntN(2))})
			_, err = b.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		case r.IntN(6) == 0:
			_, _, err = b.store.Delete(ctx, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
		default:
			m, _ := meta.Accessor(was)
			m.SetLabels(map[string]string{"l": strconv.Itoa(r.IntN(2))})
			m.SetAnnotations(map[string]string{"n": strconv.Itoa(r.Int())})
			_, _, err = b.store.Update(ctx, name, rest.DefaultUpdatedObjectInfo(was), nil, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// quietStore is a store in which nothing happens.
type quietStore struct{ storage.Interface }

// Watch implements storage.Interface.
func (quietStore) Watch(context.Context, string, storage.ListOptions) (watch.Interface, error) {
	return watch.NewFake(), nil
}

// TestStoppedWatchHoldsNothing: a server ends thousands of watches at a time, and what belonged to their requests goes
// with them.
func TestStoppedWatchHoldsNothing(t *testing.T) {
	type keyOf struct{}
	for name, end := range map[string]func(w watch.Interface, request context.CancelFunc){
		"the request ends first": func(w watch.Interface, request context.CancelFunc) {
			request()
			synctest.Wait()
			w.Stop()
		},
		"its reader stops it first": func(w watch.Interface, request context.CancelFunc) {
			w.Stop()
			request()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := func() weak.Pointer[[4096]byte] {
					value := new([4096]byte)
					ctx, request := context.WithCancel(context.WithValue(t.Context(), keyOf{}, value))
					w, err := watchWhole(ctx, quietStore{}, "", storage.ListOptions{})
					if err != nil {
						t.Fatal(err)
					}
					end(w, request)
					return weak.Make(value)
				}
				held := begun()
				synctest.Wait()
				goruntime.GC()
				goruntime.GC()
				if held.Value() != nil {
					t.Error("a watch that has ended holds its request")
				}
			})
		})
	}
}

// askedStore is a store in which nothing happens, and that keeps a watch's context.
type askedStore struct {
	quietStore
	ctx context.Context
}

// Watch implements storage.Interface.
func (s *askedStore) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	s.ctx = ctx
	return s.quietStore.Watch(ctx, key, opts)
}

// TestWatchThatNobodyStops: upstream's handler begins a watch before it knows whether it can answer in the format that
// the client wants, and does not stop it if it cannot.
func TestWatchThatNobodyStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, request := context.WithCancel(t.Context())
		var s askedStore
		if _, err := watchWhole(ctx, &s, "", storage.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		request()
		time.Sleep(readUntil - time.Nanosecond) // of the bubble's time
		if s.ctx.Err() != nil {
			t.Error("it has ended while somebody may read it")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if s.ctx.Err() == nil {
			t.Error("it goes on when nobody reads it any more")
		}
	})
}
