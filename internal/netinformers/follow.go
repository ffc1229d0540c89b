// SPDX-License-Identifier: Apache-2.0

package netinformers

import (
	"fmt"

	"k8s.io/client-go/tools/cache"
)

// Source is an informer whose events are passed on when Matters returns true, or always when Matters is nil. old is nil
// for an object that was added or deleted.
type Source struct {
	Informer cache.SharedIndexInformer
	Matters  func(old, now any) bool
}

// Follow adds handlers to the informers of the sources. The handlers call changed with the last known state of the
// object.
func Follow(changed func(now any), sources ...Source) (synced []cache.InformerSynced, err error) {
	for _, s := range sources {
		r, err := s.Informer.AddEventHandler(s.Handler(changed))
		if err != nil {
			return nil, fmt.Errorf("listening to informers: %w", err)
		}
		synced = append(synced, r.HasSynced)
	}
	return synced, nil
}

// Handler returns a handler that calls changed for the events that matter.
func (s Source) Handler(changed func(now any)) cache.ResourceEventHandler {
	notify := func(old, now any) {
		if now = Object(now); s.Matters == nil || s.Matters(old, now) {
			changed(now)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { notify(nil, o) }, UpdateFunc: notify, DeleteFunc: func(o any) { notify(nil, o) },
	}
}
