// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// trim drops what the API server's own informers need not hold: what no controller needs either, of pods' status all that neither the Node authorizer, admission nor the metrics API
// looks at, and of nodes the images that they have.
func trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		s := &o.Status
		o.Status = corev1.PodStatus{
			Phase: s.Phase, ResourceClaimStatuses: s.ResourceClaimStatuses, ExtendedResourceClaimStatus: s.ExtendedResourceClaimStatus,
			NodeAllocatableResourceClaimStatuses: s.NodeAllocatableResourceClaimStatuses,
		}
	case *corev1.Node:
		o.Status.Images = nil
	}
	return term.Trim(obj)
}
