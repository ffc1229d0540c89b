// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/raftstore/deleting"
)

// wrapStorage returns a decorator that wraps the storage which another one makes.
func wrapStorage(inner apigeneric.StorageDecorator, wrap func(storage.Interface) storage.Interface) apigeneric.StorageDecorator {
	return func(config *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error), newObject,
		newList func() runtime.Object,
		attrs storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
		s, destroy, err := inner(config, prefix, key, newObject, newList, attrs, triggers, indexers)
		if err != nil {
			return s, destroy, err
		}
		return wrap(s), destroy, nil
	}
}

// deletions marks the steps of deletions for the store, so that objects can be deleted when its quota is used up
// (raftstore/deleting). A step is a write of an object that has a deletionTimestamp: the request to delete it sets one,
// and then its finalizers go and its status changes until it is removed.
type deletions struct{ apigeneric.RESTOptionsGetter }

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (g deletions) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err == nil {
		o.Decorator = wrapStorage(o.Decorator, func(s storage.Interface) storage.Interface { return deletionStorage{s} })
	}
	return o, err
}

type deletionStorage struct{ storage.Interface }

// GuaranteedUpdate implements storage.Interface. The object is known only when the update has been tried, and the
// update may be tried again with another one.
func (s deletionStorage) GuaranteedUpdate(ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, update storage.UpdateFunc, cached runtime.Object) error {
	ctx, mark := deleting.With(ctx)
	marked := func(in runtime.Object, res storage.ResponseMeta) (runtime.Object, *uint64, error) {
		out, ttl, err := update(in, res)
		mark.Set(err == nil && isBeingDeleted(out))
		return out, ttl, err
	}
	return s.Interface.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, marked, cached)
}

func isBeingDeleted(object runtime.Object) bool {
	o, err := meta.Accessor(object)
	return err == nil && o.GetDeletionTimestamp() != nil
}
