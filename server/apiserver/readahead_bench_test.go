// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/features"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	"k8s.io/kubernetes/pkg/apis/core"
)

// ofSize is a ConfigMap that holds so many bytes, which differ from those of any other.
func ofSize(r *rand.Rand, namespace, name string, size int) *core.ConfigMap {
	o := newConfigMap(namespace, name).(*core.ConfigMap)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte('a' + r.IntN(26))
	}
	o.Data = map[string]string{"k": string(data)}
	return o
}

// writeVersions writes so many versions of one ConfigMap after its first, of which it returns the resource version.
func writeVersions(t testing.TB, b both, size, versions int) (first string) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 0))
	ctx := b.in(t.Context(), "default")
	made, err := b.store.Create(ctx, ofSize(r, "default", "large", size), rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m, _ := meta.Accessor(made)
	for range versions {
		if _, _, err := b.store.Update(ctx, "large", rest.DefaultUpdatedObjectInfo(ofSize(r, "default", "large", size)), nil, rest.ValidateAllObjectUpdateFunc, true, &metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return m.GetResourceVersion()
}

func asServed(t testing.TB) (both, *genericregistry.Store) {
	t.Helper()
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.ConcurrentWatchObjectDecode, false) // as the server has it
	newFixture(t)
	plain := newPlainStorage()
	return both{store: newConfigMaps(t, plain), make: newConfigMap}, newConfigMaps(t, cachingStorage{plain})
}

// benchmarkWatches runs a benchmark with upstream's watches of the store, and with the server's.
func benchmarkWatches(b *testing.B, run func(b *testing.B, objects both, store *genericregistry.Store)) {
	b.Run("upstream", func(b *testing.B) {
		objects, _ := asServed(b)
		run(b, objects, objects.store)
	})
	b.Run("bounded", func(b *testing.B) {
		objects, store := asServed(b)
		run(b, objects, store)
	})
}

// BenchmarkStalledWatch tells what a watch holds that nobody reads, of an object of 300 KB of which there are 60
// versions.
func BenchmarkStalledWatch(b *testing.B) {
	const watches = 20
	benchmarkWatches(b, func(b *testing.B, objects both, store *genericregistry.Store) {
		first := writeVersions(b, objects, 300<<10, 60)
		for b.Loop() {
			before := heap()
			var all []watch.Interface
			for range watches {
				w, err := store.Watch(objects.in(b.Context(), "default"), &metainternal.ListOptions{ResourceVersion: first})
				if err != nil {
					b.Fatal(err)
				}
				all = append(all, w)
			}
			held, last := heap(), uint64(0)
			for held > last+1<<20 { // until no more is decoded
				last = held
				time.Sleep(time.Second) // far more than it takes to decode a few
				held = heap()
			}
			b.ReportMetric((float64(held)-float64(before))/1e6/watches, "MB/watch")
			b.ReportMetric(0, "ns/op")
			for _, w := range all {
				w.Stop()
			}
		}
	})
}

// BenchmarkReadWatch tells how long an event takes to a watch's reader who takes each at once.
func BenchmarkReadWatch(b *testing.B) {
	for _, c := range []struct{ size, versions int }{{1 << 10, 1000}, {30 << 10, 300}, {300 << 10, 60}} {
		b.Run(fmt.Sprintf("size=%d", c.size), func(b *testing.B) {
			benchmarkWatches(b, func(b *testing.B, objects both, store *genericregistry.Store) {
				first := writeVersions(b, objects, c.size, c.versions)
				before := cpu(b)
				for b.Loop() {
					readVersions(b, objects, store, first, c.versions)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.versions), "ns/event")
				b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N)/float64(c.versions), "cpu-ns/event")
				b.ReportMetric(0, "ns/op")
			})
		})
	}
}

func readVersions(b *testing.B, objects both, store *genericregistry.Store, first string, versions int) {
	ctx, cancel := context.WithCancel(objects.in(b.Context(), "default"))
	defer cancel()
	w, err := store.Watch(ctx, &metainternal.ListOptions{ResourceVersion: first})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Stop()
	for range versions {
		if e := <-w.ResultChan(); e.Type != watch.Modified {
			b.Fatalf("%s %v", e.Type, e.Object)
		}
	}
}
