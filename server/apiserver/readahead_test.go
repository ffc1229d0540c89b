// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	"k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// countedEvents is a client of the store that counts the events that its watches pass on.
type countedEvents struct {
	clientv3.Watcher
	passed *atomic.Int32
}

// Watch implements clientv3.Watcher.
func (c countedEvents) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	in, out := c.Watcher.Watch(ctx, key, opts...), make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for r := range in {
			c.passed.Add(int32(len(r.Events)))
			select {
			case out <- r:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

// TestStalledWatchHoldsLittle: of an object of 300 KB a watch that is not read has one version decoded, and another
// two in its channels; its reader then gets all.
func TestStalledWatchHoldsLittle(t *testing.T) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.ConcurrentWatchObjectDecode, false) // as the server has it
	f := newFixture(t)
	var passed, decoded, taken atomic.Int32
	upstream.Install(func() *kubernetes.Client {
		c := f.store.Client()
		c.Watcher = countedEvents{c.Watcher, &passed}
		return c
	})
	objects := configMaps{newConfigMaps(t, newPlainStorage())}
	const versions = 30
	first := writeVersions(t, objects, 300<<10, versions)
	r := rand.New(rand.NewPCG(2, 0))
	for i := range versions {
		testenv.NoError(t, testenv.Err(objects.store.Create(objects.in(t.Context(), "many"), ofSize(r, "many", fmt.Sprintf("o%d", i), 300<<10), rest.ValidateAllObjectFunc, &metav1.CreateOptions{})))
	}
	var mostDecoded, mostPassed int32 // ahead of the reader, and of what decodes; one goroutine writes them at a time
	plain := newPlainStorage()
	plain.config.Transformer = decoding(func() {
		n := decoded.Add(1)
		mostDecoded, mostPassed = max(mostDecoded, n-taken.Load()), max(mostPassed, passed.Load()-n)
	})
	store := newConfigMaps(t, cachingStorage{plain})
	for what, o := range map[string]struct {
		namespace string
		options   metainternal.ListOptions
	}{
		"versions":       {"default", metainternal.ListOptions{ResourceVersion: first}},
		"initial events": {"many", metainternal.ListOptions{}},
	} {
		t.Run(what, func(t *testing.T) {
			passed.Store(0)
			decoded.Store(0)
			taken.Store(0)
			mostDecoded, mostPassed = 0, 0
			w := testenv.Must(store.Watch(objects.in(t.Context(), o.namespace), &o.options))(t)
			defer w.Stop()
			eventually(t, "something is decoded", func() error {
				if decoded.Load() == 0 {
					return fmt.Errorf("nothing is")
				}
				return nil
			})
			time.Sleep(50 * time.Millisecond) // real time in which a faulty buffer would decode the rest: nothing else shows that it does not
			heard := map[uint64]bool{}
			for i := range versions {
				e := <-w.ResultChan()
				taken.Add(1)
				text, version, err := describe(e)
				testenv.Require(t, err == nil && !heard[version], "event %d: %s, %v", i, text, err)
				heard[version] = true
			}
			// The reader may have taken one, and another one be on its way to it, before these are noted.
			testenv.True(t, mostDecoded <= 3 && mostPassed <= 4,
				"%d were decoded ahead of the reader, and %d lay before that", mostDecoded, mostPassed)
		})
	}
}

// ofSize is a ConfigMap that holds so many bytes, which differ from those of any other.
func ofSize(r *rand.Rand, namespace, name string, size int) *core.ConfigMap {
	o := newConfigMap(namespace, name)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte('a' + r.IntN(26))
	}
	o.Data = map[string]string{"k": string(data)}
	return o
}

// writeVersions writes so many versions of one ConfigMap after its first, of which it returns the resource version.
func writeVersions(t testing.TB, b configMaps, size, versions int) (first string) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 0))
	ctx := b.in(t.Context(), "default")
	made := testenv.Must(b.store.Create(ctx, ofSize(r, "default", "large", size), rest.ValidateAllObjectFunc, &metav1.CreateOptions{}))(t)
	m, _ := meta.Accessor(made)
	for range versions {
		if _, _, err := b.store.Update(ctx, "large", rest.DefaultUpdatedObjectInfo(ofSize(r, "default", "large", size)), nil, rest.ValidateAllObjectUpdateFunc, true, &metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return m.GetResourceVersion()
}
