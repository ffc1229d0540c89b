// SPDX-License-Identifier: Apache-2.0

package netinformers

import (
	"fmt"

	"k8s.io/client-go/tools/cache"
)

// Source is an informer of which a part hears what Matters says yes to, or all where that is nil; old is nil for what
// is new or gone.
type Source struct {
	Informer cache.SharedIndexInformer
	Matters  func(old, now any) bool
}

// Follow calls changed for what the sources tell, which must not run yet, with the last that is known of the object.
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

// Handler calls changed for what matters.
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
