// SPDX-License-Identifier: Apache-2.0

// Package netinformers lets several users share one informer where each would have a watch with a selector of its own.
// The handlers of each user get only the objects that the user selects.
package netinformers

import (
	"time"

	"k8s.io/client-go/tools/cache"
)

// Informer passes only the objects for which Shows returns true to its handlers, as a watch with a selector does. An
// object that begins to be shown is added for the handlers; one that ends to be shown is deleted for them. The store
// and the indexer hold all objects.
type Informer struct {
	cache.SharedIndexInformer
	// Shows gets the argument of a handler, which Object converts to the object. It must not change the object.
	Shows func(obj any) bool
}

func (i Informer) filtered(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{FilterFunc: i.Shows, Handler: h}
}

// Object returns the object that a handler's argument is about. That is the argument itself, or the last known state of
// an object whose deletion was missed.
func Object(argument any) any {
	if final, ok := argument.(cache.DeletedFinalStateUnknown); ok {
		return final.Obj
	}
	return argument
}

// AddEventHandler implements cache.SharedInformer.
func (i Informer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(i.filtered(h))
}

// AddEventHandlerWithResyncPeriod implements cache.SharedInformer.
func (i Informer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler,
	resync time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(i.filtered(h), resync)
}

// AddEventHandlerWithOptions implements cache.SharedInformer.
func (i Informer) AddEventHandlerWithOptions(h cache.ResourceEventHandler,
	o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithOptions(i.filtered(h), o)
}
