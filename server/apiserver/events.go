// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/apis/core"
)

// EventLimits keep events from using up the store's quota.
type EventLimits interface {
	// TTL returns how long an event in a namespace may live that would live for usual. refused says that the namespace
	// gets no new ones.
	TTL(namespace string, usual time.Duration) (ttl time.Duration, refused bool)
	// Refused counts a refused event.
	Refused()
}

// limitedEvents applies limits to events, of both groups that have them.
type limitedEvents struct {
	apigeneric.RESTOptionsGetter
	limits EventLimits // or nil
}

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (g limitedEvents) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err == nil && g.limits != nil && resource == core.Resource("events") {
		o.Decorator = wrapStorage(o.Decorator, func(s storage.Interface) storage.Interface { return eventStorage{s, g.limits} })
	}
	return o, err
}

type eventStorage struct {
	storage.Interface
	limits EventLimits
}

// Create implements storage.Interface. The error has no time after which to try again: clients would wait for that, and
// they drop an event that is refused.
func (s eventStorage) Create(ctx context.Context, key string, event, out runtime.Object, ttl uint64) error {
	namespace := namespaceOf(event)
	shortened, refused := s.limits.TTL(namespace, time.Duration(ttl)*time.Second)
	if refused {
		s.limits.Refused()
		return apierrors.NewTooManyRequests(fmt.Sprintf(
			"events take a quarter of the quota of the cluster's store, and those of namespace %q more than its share", namespace), 0)
	}
	return s.Interface.Create(ctx, key, event, out, uint64(shortened/time.Second))
}

// GuaranteedUpdate implements storage.Interface. An update is not refused: it adds hardly anything.
func (s eventStorage) GuaranteedUpdate(ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, update storage.UpdateFunc, cached runtime.Object) error {
	limited := func(in runtime.Object, res storage.ResponseMeta) (runtime.Object, *uint64, error) {
		out, ttl, err := update(in, res)
		if err == nil && ttl != nil {
			shortened, _ := s.limits.TTL(namespaceOf(out), time.Duration(*ttl)*time.Second)
			ttl = new(uint64(shortened / time.Second))
		}
		return out, ttl, err
	}
	return s.Interface.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, limited, cached)
}

func namespaceOf(object runtime.Object) string {
	o, err := meta.Accessor(object)
	if err != nil {
		return ""
	}
	return o.GetNamespace()
}
