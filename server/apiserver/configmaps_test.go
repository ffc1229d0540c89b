// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"math/rand/v2"
	"strconv"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/core"
	configmapstore "k8s.io/kubernetes/pkg/registry/core/configmap/storage"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// plainStorage is storage of built-in resources in the fixture's store, as the server has it without caches.
type plainStorage struct{ config *storagebackend.Config }

func newPlainStorage() plainStorage {
	c := storagebackend.NewDefaultConfig("/registry", legacyscheme.Codecs.LegacyCodec(schema.GroupVersion{Version: "v1"}))
	c.Transport.ServerList = []string{storeServer}
	return plainStorage{c}
}

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (p plainStorage) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (apigeneric.RESTOptions, error) {
	return apigeneric.RESTOptions{StorageConfig: p.config.ForResource(resource), Decorator: apigeneric.UndecoratedStorage, DeleteCollectionWorkers: 1, ResourcePrefix: "/" + resource.Resource}, nil
}

// configMaps is the store of ConfigMaps, as a registry has it.
type configMaps struct{ store *genericregistry.Store }

func newConfigMaps(t testing.TB, g apigeneric.RESTOptionsGetter) *genericregistry.Store {
	t.Helper()
	s := testenv.Must(configmapstore.NewREST(g))(t)
	t.Cleanup(s.Store.DestroyFunc)
	return s.Store
}

func newConfigMap(namespace, name string) *core.ConfigMap {
	return &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// in is the context of a request for what is in a namespace.
func (b configMaps) in(ctx context.Context, namespace string) context.Context {
	info := &genericapirequest.RequestInfo{IsResourceRequest: true, APIVersion: "v1", Resource: "configmaps"}
	return genericapirequest.WithNamespace(genericapirequest.WithRequestInfo(ctx, info), namespace)
}

// change makes, changes or deletes an object, and returns the resource version.
func (b configMaps) change(t *testing.T, r *rand.Rand) string {
	t.Helper()
	ns, name := "ns"+strconv.Itoa(r.IntN(2)), "o"+strconv.Itoa(r.IntN(5))
	if r.IntN(5) == 0 {
		name += "-x" // of which the other's name is the beginning
	}
	ctx := b.in(t.Context(), ns)
	was, err := b.store.Get(ctx, name, &metav1.GetOptions{})
	var out runtime.Object
	label := map[string]string{"l": strconv.Itoa(r.IntN(2))}
	switch {
	case err != nil:
		o := newConfigMap(ns, name)
		o.Labels = label
		out, err = b.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	case r.IntN(4) == 0:
		zero := int64(0)
		out, _, err = b.store.Delete(ctx, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{GracePeriodSeconds: &zero})
	default:
		m, _ := meta.Accessor(was)
		m.SetLabels(label)
		m.SetAnnotations(map[string]string{"n": strconv.Itoa(r.Int())})
		out, _, err = b.store.Update(ctx, name, rest.DefaultUpdatedObjectInfo(was), nil, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	}
	testenv.NoError(t, err)
	m, err := meta.Accessor(out)
	if err != nil {
		now := testenv.Must(b.store.Storage.Storage.GetCurrentResourceVersion(ctx))(t)
		return strconv.FormatUint(now, 10)
	}
	return m.GetResourceVersion()
}
