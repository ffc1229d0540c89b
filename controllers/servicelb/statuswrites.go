// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// statusWrites are the Services in the API's responses to this term's status writes, until the cache has the same or a
// newer version. Otherwise a round could allocate an address again, to an older Service that requests it meanwhile.
type statusWrites map[types.NamespacedName]*corev1.Service

// uncertainWrites are Services whose last write failed with an error that does not exclude a successful write, as after
// a wait for a quorum.
type uncertainWrites map[types.NamespacedName]bool

// record records a Service whose write may have succeeded.
func (u uncertainWrites) record(svc *corev1.Service, err error) {
	if err != nil && !isTransient(err) && !apierrors.IsInvalid(err) {
		u[serviceKey(svc)] = true
	}
}

// resolveUncertainWrites reads the Services whose last write may have succeeded. It records them as the API's response.
func (c *Controller) resolveUncertainWrites(ctx context.Context) error {
	for k := range c.uncertain {
		svc, err := c.o.Client.CoreV1().Services(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
		switch {
		case err == nil:
			c.written.record(svc)
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("reading what became of the status of the Service %s: %w", k, err)
		}
		delete(c.uncertain, k)
	}
	return nil
}

// record records the API's response.
func (w statusWrites) record(answer *corev1.Service) { w[serviceKey(answer)] = answer }

// overlay returns the Services of a cache, with newer versions from w in their place.
func (w statusWrites) overlay(cached []*corev1.Service) []*corev1.Service {
	if len(w) == 0 {
		return cached
	}
	out, left := slices.Clone(cached), statusWrites{}
	for i, svc := range cached {
		mine := w[serviceKey(svc)]
		if mine == nil || mine.UID != svc.UID {
			continue
		}
		if order, err := resourceversion.CompareResourceVersion(mine.ResourceVersion, svc.ResourceVersion); err == nil && order > 0 {
			out[i], left[serviceKey(svc)] = mine, mine
		}
	}
	clear(w) // entries that are not in left are outdated or deleted
	maps.Copy(w, left)
	return out
}
