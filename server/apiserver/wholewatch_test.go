// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
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
	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"

	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// describe returns an event as tests compare it.
func describe(e watch.Event) (text string, version uint64, err error) {
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
	b := configMaps{newConfigMaps(t, plain)}
	r := rand.New(rand.NewPCG(1, 0))
	first := b.change(t, r)
	const events = 12
	for range events {
		b.change(t, r)
	}
	var all []string
	whole := testenv.Must(b.store.Watch(t.Context(), &metainternal.ListOptions{ResourceVersion: first}))(t)
	defer whole.Stop()
	for range events {
		text, _, err := describe(<-whole.ResultChan())
		testenv.NoError(t, err)
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
	plain = newPlainStorage()
	plain.config.Transformer = decoding(func() {
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
	store := newConfigMaps(t, cachingStorage{plain})
	heard := 0
	for range 100 {
		ctx, end := context.WithCancel(t.Context())
		decoded.Store(0)
		began := make(chan struct{})
		ends.Store(new(func() {
			<-began
			end()
		}))
		w := testenv.Must(store.Watch(ctx, &metainternal.ListOptions{ResourceVersion: first}))(t)
		close(began)
		var got []string
		read(ctx, w, 5*time.Millisecond, func(e watch.Event) {
			text, _, err := describe(e)
			testenv.Check(t, err)
			got = append(got, text)
		})
		for range w.ResultChan() { // until it has ended
		}
		<-passed
		if heard += len(got); len(got) > len(all) || !slices.Equal(got, all[:len(got)]) {
			t.Fatalf("delivered:\n%s\nof\n%s", strings.Join(got, "\n"), strings.Join(all, "\n"))
		}
	}
	testenv.True(t, heard != 0, "no watch delivered anything")
}

// TestWatchEndsForWhoReadsOn: a client that reads a watch until it ends, as upstream's handler does over WebSocket,
// does not wait for longer than the request that it belongs to, and is sent the beginning of what happened. Objects
// change all the time.
func TestWatchEndsForWhoReadsOn(t *testing.T) {
	newFixture(t)
	plain := newPlainStorage()
	b := configMaps{newConfigMaps(t, plain)}
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	first := b.change(t, r)
	whole := testenv.Must(b.store.Watch(t.Context(), &metainternal.ListOptions{ResourceVersion: first}))(t)
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
	store := newConfigMaps(t, cachingStorage{plain})
	for range 30 {
		ctx, end := context.WithCancel(t.Context())
		t.Cleanup(end)
		w := testenv.Must(store.Watch(ctx, &metainternal.ListOptions{ResourceVersion: strconv.FormatUint(from, 10)}))(t)
		ends, heard := r.IntN(20), 0
		for e := range w.ResultChan() {
			text, _, err := describe(e)
			testenv.NoError(t, err)
			want, version, err := describe(<-whole.ResultChan())
			testenv.NoError(t, err)
			if from = version; text != want {
				t.Fatalf("event %d of a watch whose request has ended at %d is\n%s\nand should be\n%s", heard, ends, text, want)
			}
			if heard++; heard > ends {
				end()
			}
		}
		testenv.Require(t, ended(w), "its request has ended long ago")
		w.Stop()
	}
}

// ended says whether a watch that is at its end is there by itself, and not for want of a reader.
func ended(w watch.Interface) bool {
	end := w.(*wholeWatch).end
	end.mu.Lock()
	defer end.mu.Unlock()
	return end.cancel != nil
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
					w := testenv.Must(watchWhole(ctx, quietStore{}, "", storage.ListOptions{}))(t)
					end(w, request)
					return weak.Make(value)
				}
				held := begun()
				synctest.Wait()
				goruntime.GC()
				goruntime.GC()
				testenv.True(t, held.Value() == nil, "a watch that has ended holds its request")
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

// TestUnreadWatchEndsByItself: upstream's handler begins a watch before it knows whether it can answer in the format
// that the client wants, and does not stop it if it cannot.
func TestUnreadWatchEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, request := context.WithCancel(t.Context())
		var s askedStore
		testenv.Must(watchWhole(ctx, &s, "", storage.ListOptions{}))(t)
		request()
		time.Sleep(readUntil - time.Nanosecond) // of the bubble's time
		testenv.True(t, s.ctx.Err() == nil, "it has ended while its client may still read it")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		testenv.True(t, s.ctx.Err() != nil, "it goes on although no client can read it any more")
	})
}
