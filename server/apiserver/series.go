// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/server/apiserver/metricsgc"
)

// seriesKept is how long the metrics of a deleted object are kept. By then a scraper has seen the last values, and the
// last watches of the object have ended, which are counted at their end.
const seriesKept = 2 * time.Minute

// dropOldSeries removes the metrics' series of deleted CustomResourceDefinitions and namespaces.
func (ch *chain) dropOldSeries(g *generic, after time.Duration) error {
	definitions := ch.extensions.Informers.Apiextensions().V1().CustomResourceDefinitions()
	namespaces := g.informers.Core().V1().Namespaces()
	_, err := definitions.Informer().AddEventHandler(afterDeletion(after,
		func(name string) error { _, err := definitions.Lister().Get(name); return err },
		func(name string) { // a definition's name is RESOURCE.GROUP
			resource, group, _ := strings.Cut(name, ".")
			metricsgc.DropGroupResource(group, resource)
		}))
	if err != nil {
		return fmt.Errorf("watching definitions for their metrics: %w", err)
	}
	_, err = namespaces.Informer().AddEventHandler(afterDeletion(after,
		func(name string) error { _, err := namespaces.Lister().Get(name); return err },
		func(name string) { metricsgc.DropNamespace(name) }))
	if err != nil {
		return fmt.Errorf("watching namespaces for their metrics: %w", err)
	}
	return nil
}

// afterDeletion returns a handler that calls drop with the name of a deleted object, when the time after has elapsed,
// unless the object was created again by then.
func afterDeletion(after time.Duration, get func(name string) error, drop func(name string)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) {
		name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
		if err != nil {
			return
		}
		time.AfterFunc(after, func() {
			if apierrors.IsNotFound(get(name)) {
				drop(name)
			}
		})
	}}
}
