// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// trim drops what the API server's own informers need not hold: what no controller needs either, of pods' status all
// that neither the Node authorizer, admission nor the metrics API looks at, and of nodes the images that they have.
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

// ownInformers are the API server's own. Upstream's admission policies would read their parameters from them, whatever
// kind these are of, and their expressions may ask for any field: of the kinds of which trim drops some, the policies'
// plugin makes an informer of its own, as it does for custom resources, for as long as a policy asks for that kind.
type ownInformers struct {
	informers.SharedInformerFactory
}

// ForResource implements informers.SharedInformerFactory. Policies' parameters alone are asked for in this way
// (testPoliciesSeeAllOfTheirParameters).
func (i ownInformers) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	switch r {
	case corev1.SchemeGroupVersion.WithResource("pods"), corev1.SchemeGroupVersion.WithResource("nodes"):
		return nil, fmt.Errorf("the API server's own informer of %s does not hold all of them", r.Resource)
	}
	return i.SharedInformerFactory.ForResource(r)
}
