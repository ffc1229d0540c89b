// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/feature"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// valuePrefix is what the test transformer puts before each stored value.
const valuePrefix = "test!"

var (
	scheme = newScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	metav1.AddToGroupVersion(s, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(s))
	utilruntime.Must(examplev1.AddToScheme(s))
	return s
}

func newPod() runtime.Object     { return &example.Pod{} }
func newPodList() runtime.Object { return &example.PodList{} }

// fixture is upstream's storage on a store of its own.
type fixture struct {
	storage.Interface
	client      *kubernetes.Client
	codec       runtime.Codec
	transformer *swappable
}

type fixtureOptions struct {
	codec            runtime.Codec
	transformer      value.Transformer
	progressInterval time.Duration
}

type option func(*fixtureOptions)

func withCodec(c runtime.Codec) option { return func(o *fixtureOptions) { o.codec = c } }

func withTransformer(t value.Transformer) option {
	return func(o *fixtureOptions) { o.transformer = t }
}

func withProgressEvery(d time.Duration) option {
	return func(o *fixtureOptions) { o.progressInterval = d }
}

func prefixTransformer() *storagetesting.PrefixTransformer {
	return storagetesting.NewPrefixTransformer([]byte(valuePrefix), false)
}

// setupOn sets up a storage whose client is that of the store which open gives.
func setupOn(t testing.TB, open func(testing.TB, time.Duration) *raftstore.Store, options ...option) (context.Context, *fixture) {
	t.Helper()
	o := fixtureOptions{
		codec:       apitesting.TestCodec(codecs, examplev1.SchemeGroupVersion),
		transformer: prefixTransformer(),
	}
	for _, set := range options {
		set(&o)
	}
	client := open(t, o.progressInterval).Client()
	recorder := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.KV = storagetesting.NewKVRecorder(client.KV, recorder)
	client.Kubernetes = recorder

	compactor := etcd3.NewCompactor(client.Client, 0, clock.RealClock{}, nil)
	t.Cleanup(compactor.Stop)
	leases := etcd3.NewDefaultLeaseManagerConfig()
	leases.ReuseDurationSeconds = 1 // the tests wait no longer than 30 s
	versioner := storage.APIObjectVersioner{}
	transformer := newSwappable(o.transformer)
	store := testenv.Must(etcd3.New(client, compactor, o.codec, newPod, newPodList, "", "/pods/",
		schema.GroupResource{Resource: "pods"}, transformer, leases,
		etcd3.NewDefaultDecoder(o.codec, versioner), versioner))(t)
	t.Cleanup(store.Close)
	return context.Background(), &fixture{store, client, o.codec, transformer}
}

// swappable is a transformer that a test may replace while it is in use.
type swappable struct {
	now atomic.Pointer[value.Transformer]
}

func newSwappable(t value.Transformer) *swappable {
	s := &swappable{}
	s.now.Store(&t)
	return s
}

func (s *swappable) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	return (*s.now.Load()).TransformFromStorage(ctx, data, dataCtx)
}

func (s *swappable) TransformToStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, error) {
	return (*s.now.Load()).TransformToStorage(ctx, data, dataCtx)
}

func (f *fixture) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	before := f.transformer.now.Load()
	after := modify(*before)
	f.transformer.now.Store(&after)
	return func() { f.transformer.now.Store(before) }
}

type prefixFixture struct{ *fixture }

func (f prefixFixture) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	return f.UpdateTransformer(func(t value.Transformer) value.Transformer {
		changed := *t.(*storagetesting.PrefixTransformer)
		return modify(&changed)
	})
}

func (f *fixture) kvRecorder() *storagetesting.KVRecorder {
	return f.client.KV.(*storagetesting.KVRecorder)
}

func (f *fixture) prefix() *storagetesting.PrefixTransformer {
	return (*f.transformer.now.Load()).(*storagetesting.PrefixTransformer)
}

// increaseRV makes a revision that concerns no object.
func (f *fixture) increaseRV(ctx context.Context, t *testing.T) int64 {
	resp := testenv.Must(f.client.KV.Put(ctx, "increaseRV", "ok"))(t)
	return resp.Header.Revision
}

// compact compacts as upstream's compactor does and waits until the storage
// has noticed.
func (f *fixture) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	rv := testenv.Must(storage.APIObjectVersioner{}.ParseResourceVersion(resourceVersion))(t)
	compact(ctx, t, f.client.Client, int64(rv))
	if utilfeature.DefaultFeatureGate.Enabled(features.ListFromCacheSnapshot) {
		eventually(t, ctx, "compacted", func() bool { return f.CompactRevision() == int64(rv) })
	}
}

func compact(ctx context.Context, t *testing.T, client *clientv3.Client, rev int64) {
	version, _, _, err := etcd3.Compact(ctx, client, 0, rev)
	if err != nil {
		_, _, _, err = etcd3.Compact(ctx, client, version, rev)
	}
	testenv.NoError(t, err)
}

func enable(t *testing.T, gate string, on bool) {
	t.Helper()
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, featureName(gate), on)
}

// freshFeatureCheck forgets what other tests found out about the store.
func freshFeatureCheck(t *testing.T) {
	t.Helper()
	before := feature.DefaultFeatureSupportChecker
	feature.DefaultFeatureSupportChecker = feature.NewDefaultFeatureSupportChecker()
	t.Cleanup(func() { feature.DefaultFeatureSupportChecker = before })
}
