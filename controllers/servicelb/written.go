// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// written are Services as the API answered to this term's writes of their status, until the cache has them so or newer. A round that did not see what the one before
// has given could give it to an older Service that asks for it meanwhile.
type written map[types.NamespacedName]*corev1.Service

// note keeps what the API answered.
func (w written) note(answer *corev1.Service) { w[key(answer)] = answer }

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
	for k, svc := range left {
		w[k] = svc
	}
	return out
}
