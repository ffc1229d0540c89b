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

// written are Services as the API answered to this term's writes of their status, until the cache has them so or newer.
// A round that did not see what the one before has given could give it to an older Service that asks for it meanwhile.
type written map[types.NamespacedName]*corev1.Service

// unsure are Services of which the API has answered a write with an error that does not say that nothing was written,
// as after a wait for a quorum.
type unsure map[types.NamespacedName]bool

// record keeps whose write may have been done.
func (u unsure) record(svc *corev1.Service, err error) {
	if err != nil && !isTransient(err) && !apierrors.IsInvalid(err) {
		u[key(svc)] = true
	}
}

// ask reads the Services whose last write is not known to have succeeded, as if that had been the answer.
func (c *Controller) ask(ctx context.Context) error {
	for k := range c.unsure {
		svc, err := c.o.Client.CoreV1().Services(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
		switch {
		case err == nil:
			c.written.record(svc)
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("reading what became of the status of the Service %s: %w", k, err)
		}
		delete(c.unsure, k)
	}
	return nil
}

// record keeps what the API answered.
func (w written) record(answer *corev1.Service) { w[key(answer)] = answer }

// over are the Services of a cache with those that are newer here in their place.
func (w written) over(cached []*corev1.Service) []*corev1.Service {
	if len(w) == 0 {
		return cached
	}
	out, left := slices.Clone(cached), written{}
	for i, svc := range cached {
		mine := w[key(svc)]
		if mine == nil || mine.UID != svc.UID {
			continue
		}
		if order, err := resourceversion.CompareResourceVersion(mine.ResourceVersion, svc.ResourceVersion); err == nil && order > 0 {
			out[i], left[key(svc)] = mine, mine
		}
	}
	clear(w) // what is left out is known to the cache by now, or is gone
	maps.Copy(w, left)
	return out
}
