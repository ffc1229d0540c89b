// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/api/apitesting"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/component-base/featuregate"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func featureName(name string) featuregate.Feature { return featuregate.Feature(name) }

// TestUpstreamStorageConformance is upstream's conformance suite for storage.Interface, each test set up as upstream's
// etcd3 package does it.
func TestUpstreamStorageConformance(t *testing.T) { everywhere(t, testStorage) }

func testStorage(t *testing.T, setup setupFunc) {
	plain := map[string]func(context.Context, *testing.T, storage.Interface){
		"CreateWithTTL":                          storagetesting.RunTestCreateWithTTL,
		"CreateWithKeyExist":                     storagetesting.RunTestCreateWithKeyExist,
		"Get":                                    storagetesting.RunTestGet,
		"UnconditionalDelete":                    storagetesting.RunTestUnconditionalDelete,
		"ConditionalDelete":                      storagetesting.RunTestConditionalDelete,
		"DeleteWithSuggestion":                   storagetesting.RunTestDeleteWithSuggestion,
		"DeleteWithSuggestionAndConflict":        storagetesting.RunTestDeleteWithSuggestionAndConflict,
		"DeleteWithSuggestionOfDeletedObject":    storagetesting.RunTestDeleteWithSuggestionOfDeletedObject,
		"ValidateDeletionWithSuggestion":         storagetesting.RunTestValidateDeletionWithSuggestion,
		"ValidateDeletionWithOnlySuggestion":     storagetesting.RunTestValidateDeletionWithOnlySuggestionValid,
		"DeleteWithConflict":                     storagetesting.RunTestDeleteWithConflict,
		"PreconditionalDeleteWithSuggestion":     storagetesting.RunTestPreconditionalDeleteWithSuggestion,
		"PreconditionalDeleteWithSuggestionPass": storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass,
		"ListPaging":                             storagetesting.RunTestListPaging,
		"GetListRecursivePrefix":                 storagetesting.RunTestGetListRecursivePrefix,
		"KeySchema":                              storagetesting.RunTestKeySchema,
		"NamespaceScopedList":                    storagetesting.RunTestNamespaceScopedList,
		"GuaranteedUpdateWithTTL":                storagetesting.RunTestGuaranteedUpdateWithTTL,
		"GuaranteedUpdateWithConflict":           storagetesting.RunTestGuaranteedUpdateWithConflict,
		"GuaranteedUpdateWithSuggestion":         storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict,
	}
	for name, run := range plain {
		t.Run(name, func(t *testing.T) {
			ctx, f := setup(t)
			run(ctx, t, f)
		})
	}
	withPrefix := map[string]func(context.Context, *testing.T, storagetesting.InterfaceWithPrefixTransformer){
		"GuaranteedUpdateChecksStoredData": storagetesting.RunTestGuaranteedUpdateChecksStoredData,
		"TransformationFailure":            storagetesting.RunTestTransformationFailure,
		"ListResourceVersionMatch":         storagetesting.RunTestListResourceVersionMatch,
	}
	for name, run := range withPrefix {
		t.Run(name, func(t *testing.T) {
			ctx, f := setup(t)
			run(ctx, t, prefixFixture{f})
		})
	}
	t.Run("Create", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestCreate(ctx, t, f, f.checkStored)
	})
	t.Run("GuaranteedUpdate", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestGuaranteedUpdate(ctx, t, prefixFixture{f}, f.checkStored)
	})
	t.Run("GetListNonRecursive", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestGetListNonRecursive(ctx, t, f.increaseRV, f)
	})
	t.Run("CompactRevision", func(t *testing.T) {
		enable(t, "ListFromCacheSnapshot", true)
		ctx, f := setup(t)
		storagetesting.RunTestCompactRevision(ctx, t, f, f.increaseRV, f.compact)
	})
	t.Run("ListInconsistentContinuation", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestListInconsistentContinuation(ctx, t, f, f.compact)
	})
	for _, sized := range []bool{true, false} {
		t.Run(fmt.Sprintf("Stats/sized=%v", sized), func(t *testing.T) {
			ctx, f := setup(t)
			if sized {
				testenv.NoError(t, f.EnableResourceSizeEstimation(f.keys))
			}
			storagetesting.RunTestStats(ctx, t, f, f.codec, f.prefix(), sized)
		})
	}
}

// TestStorageLists runs the list tests with lists read at once and streamed.
func TestStorageLists(t *testing.T) { everywhere(t, testStorageLists) }

func testStorageLists(t *testing.T, setup setupFunc) {
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprintf("streamed=%v", streamed), func(t *testing.T) {
			enable(t, "EtcdRangeStream", streamed)
			freshFeatureCheck(t)
			t.Run("List", func(t *testing.T) {
				ctx, f := setup(t)
				storagetesting.RunTestList(ctx, t, f, f.compact, false, f.client.Kubernetes.(*storagetesting.KubernetesRecorder))
				if n := f.kvRecorder().GetStreamReadsAndReset(); streamed != (n > 0) {
					t.Errorf("%d lists were streamed", n)
				}
			})
			t.Run("ConsistentList", func(t *testing.T) {
				ctx, f := setup(t)
				storagetesting.RunTestConsistentList(ctx, t, f, f.increaseRV, false, true, false)
			})
		})
	}
	t.Run("Continuation", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestListContinuation(ctx, t, f, f.checkCalls)
	})
	t.Run("PaginationRareObject", func(t *testing.T) {
		enable(t, "ListFromCacheSnapshot", false)
		ctx, f := setup(t)
		storagetesting.RunTestListPaginationRareObject(ctx, t, f, f.checkCalls)
	})
	t.Run("ContinuationWithFilter", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestListContinuationWithFilter(ctx, t, f, f.checkCalls)
	})
}

// TestStorageCorruptObjects runs the tests about objects that cannot be read.
func TestStorageCorruptObjects(t *testing.T) { everywhere(t, testStorageCorruptObjects) }

func testStorageCorruptObjects(t *testing.T, setup setupFunc) {
	const gate = "AllowUnsafeMalformedObjectDeletion"
	t.Run("ErrorAggregation", func(t *testing.T) {
		enable(t, gate, true)
		ctx, f := setup(t)
		f.Interface = etcd3.NewStoreWithUnsafeCorruptObjectDeletion(f.Interface, schema.GroupResource{Resource: "pods"})
		storagetesting.RunTestGetListWithErrorAggregation(ctx, t, f, corruptError(t))
	})
	t.Run("NoErrorAggregation", func(t *testing.T) {
		enable(t, gate, false)
		ctx, f := setup(t)
		storagetesting.RunTestGetListWithoutErrorAggregation(ctx, t, f, corruptError(t))
	})
	t.Run("ConflictWithoutExpectation", func(t *testing.T) {
		enable(t, gate, true)
		codec := &failingCodec{Codec: apitesting.TestCodec(codecs, examplev1.SchemeGroupVersion)}
		ctx, f := setup(t, withCodec(codec))
		storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(ctx, t, f, codec.fail.Store)
	})
	t.Run("ExpectedTransformError", func(t *testing.T) {
		enable(t, gate, true)
		transformer := &failingTransformer{Transformer: prefixTransformer()}
		ctx, f := setup(t, withTransformer(transformer))
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, f, transformer.fail.Store)
	})
	t.Run("ExpectedDecodeError", func(t *testing.T) {
		enable(t, gate, true)
		codec := &failingCodec{Codec: apitesting.TestCodec(codecs, examplev1.SchemeGroupVersion)}
		ctx, f := setup(t, withCodec(codec))
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, f, codec.fail.Store)
	})
	t.Run("SuggestionWithoutExpectation", func(t *testing.T) {
		enable(t, gate, true)
		ctx, f := setup(t)
		storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError(ctx, t, f)
	})
	t.Run("Watch", func(t *testing.T) {
		enable(t, gate, true)
		ctx, f := setup(t)
		storagetesting.RunTestWatchWithUnsafeDelete(ctx, t, f, corruptError(t))
	})
}

// TestStorageWatch is upstream's suite for watches.
func TestStorageWatch(t *testing.T) { everywhere(t, testStorageWatch) }

func testStorageWatch(t *testing.T, setup setupFunc) {
	plain := map[string]func(context.Context, *testing.T, storage.Interface){
		"Watch":                           storagetesting.RunTestWatch,
		"ClusterScoped":                   storagetesting.RunTestClusterScopedWatch,
		"NamespaceScoped":                 storagetesting.RunTestNamespaceScopedWatch,
		"DeleteTrigger":                   storagetesting.RunTestDeleteTriggerWatch,
		"FromNonZero":                     storagetesting.RunTestWatchFromNonZero,
		"DelayedDelivery":                 storagetesting.RunTestDelayedWatchDelivery,
		"ContextCancel":                   storagetesting.RunTestWatchContextCancel,
		"Timeout":                         storagetesting.RunTestWatcherTimeout,
		"DeleteEventHasLatestRV":          storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV,
		"InitializationSignal":            storagetesting.RunTestWatchInitializationSignal,
		"InitialEventsBackwardCompatible": storagetesting.RunSendInitialEventsBackwardCompatibility,
		"Semantics":                       storagetesting.RunWatchSemantics,
		"SemanticsInitialEventsExtended":  storagetesting.RunWatchSemanticInitialEventsExtended,
		"ListMatchSingle":                 storagetesting.RunWatchListMatchSingle,
	}
	for name, run := range plain {
		t.Run(name, func(t *testing.T) {
			ctx, f := setup(t)
			run(ctx, t, f)
		})
	}
	t.Run("FromZero", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestWatchFromZero(ctx, t, f, f.compact)
	})
	t.Run("Error", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunTestWatchError(ctx, t, prefixFixture{f})
	})
	t.Run("ErrorBlocksFurtherEvents", func(t *testing.T) {
		ctx, f := setup(t)
		storagetesting.RunWatchErrorIsBlockingFurtherEvents(ctx, t, prefixFixture{f})
	})
	t.Run("ProgressNotify", func(t *testing.T) {
		ctx, f := setup(t, withProgressEvery(time.Second))
		storagetesting.RunOptionalTestProgressNotify(ctx, t, f, f.increaseRV)
	})
	t.Run("DispatchBookmarks", func(t *testing.T) {
		ctx, f := setup(t, withProgressEvery(time.Second))
		storagetesting.RunTestWatchDispatchBookmarkEvents(ctx, t, f, false)
	})
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprintf("streamed=%v", streamed), func(t *testing.T) {
			enable(t, "EtcdRangeStream", streamed)
			enable(t, "ConcurrentWatchObjectDecode", true)
			ctx, f := setup(t)
			storagetesting.RunWatchSemantics(ctx, t, f)
		})
	}
}

// checkStored is what upstream demands of an object as it is stored.
func (f *fixture) checkStored(ctx context.Context, t *testing.T, key string) {
	got, err := f.client.KV.Get(ctx, key)
	testenv.Require(t, err == nil && len(got.Kvs) != 0, "get %s: %v, %v", key, got, err)
	decoded := testenv.Must(runtime.Decode(f.codec, got.Kvs[0].Value[len(valuePrefix):]))(t)
	if pod := decoded.(*example.Pod); pod.ResourceVersion != "" {
		t.Errorf("stored with resource version %q", pod.ResourceVersion)
	}
}

// checkCalls compares reads with what upstream computes for its page sizes,
// which double from page to page up to 10,000.
func (f *fixture) checkCalls(t *testing.T, pageSize, objects uint64) {
	if reads := f.prefix().GetReadsAndReset(); reads != objects {
		t.Errorf("read %d objects, want %d", reads, objects)
	}
	want := uint64(1)
	if pageSize != 0 {
		for limit, sum := pageSize, uint64(1); sum < objects; want++ {
			limit = min(2*limit, 10_000)
			sum += limit
		}
	}
	if calls := f.kvRecorder().GetReadsAndReset() + f.kvRecorder().GetStreamReadsAndReset(); calls != want {
		t.Fatalf("%d calls, want %d", calls, want)
	}
}

// keys lists the keys of all objects, as the storage's own key lister does.
func (f *fixture) keys(ctx context.Context) ([]string, error) {
	got, err := f.client.Kubernetes.List(ctx, "/pods/", kubernetes.ListOptions{})
	if err != nil {
		return nil, err
	}
	keys := make([]string, 0, len(got.Kvs))
	for _, kv := range got.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys, nil
}

// corruptError is the error, of an unexported type, that upstream gives for an
// object that cannot be transformed.
func corruptError(t *testing.T) error {
	failing := &failingTransformer{Transformer: prefixTransformer(), err: errors.New("bits flipped")}
	failing.fail.Store(true)
	_, _, err := etcd3.WithCorruptObjErrorHandlingTransformer(failing).
		TransformFromStorage(context.Background(), nil, value.DefaultContext("x"))
	testenv.Require(t, err != nil, "no error")
	return err
}

type failingTransformer struct {
	value.Transformer
	fail atomic.Bool
	err  error
}

func (f *failingTransformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	if f.fail.Load() {
		if f.err != nil {
			return nil, false, f.err
		}
		return nil, false, errors.New("synthetic error")
	}
	return f.Transformer.TransformFromStorage(ctx, data, dataCtx)
}

type failingCodec struct {
	runtime.Codec
	fail atomic.Bool
}

func (f *failingCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if f.fail.Load() {
		return nil, nil, errors.New("synthetic error")
	}
	return f.Codec.Decode(data, defaults, into)
}
