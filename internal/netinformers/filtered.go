// SPDX-License-Identifier: Apache-2.0

// Package netinformers lets one shared informer stand for several whose watches would have selectors: each part's
// handlers hear only of the objects that it asked for.
package netinformers

import (
	"time"

	"k8s.io/client-go/tools/cache"
)

// Informer has its handlers hear of what Shows says yes to, as a watch with a selector would have it: what begins to be
// shown is added to them, what ends to be is deleted. Its store and indexer hold all the same.
type Informer struct {
	cache.SharedIndexInformer
	// Shows is asked about handlers' arguments, of which Object makes objects, and must not change them.
	Shows func(obj any) bool
}

func (i Informer) only(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{FilterFunc: i.Shows, Handler: h}
}

// Object is what a handler's argument is about: itself, or the last that was known of an object whose deletion was
// missed.
func Object(argument any) any {
	if final, ok := argument.(cache.DeletedFinalStateUnknown); ok {
		return final.Obj
	}
	return argument
}

// AddEventHandler implements cache.SharedInformer.
func (i Informer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(i.only(h))
}

// AddEventHandlerWithResyncPeriod implements cache.SharedInformer.
func (i Informer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler,
	resync time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(i.only(h), resync)
}

// AddEventHandlerWithOptions implements cache.SharedInformer.
func (i Informer) AddEventHandlerWithOptions(h cache.ResourceEventHandler,
	o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithOptions(i.only(h), o)
}
