// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// trim drops fields that the API server's own informers need not hold: those that no controller needs either
// (term.Trim), the fields of pods' status that neither the Node authorizer, admission nor the metrics API reads, and
// nodes' images.
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

// ownInformers are the API server's own informers. Upstream's admission policies would read their parameters, of any
// kind, from them, and their expressions may use any field. For the kinds that trim reduces, the policies' plugin
// therefore makes an informer of its own, as it does for custom resources, while a policy uses that kind.
type ownInformers struct {
	informers.SharedInformerFactory
}

// ForResource implements informers.SharedInformerFactory. Only the parameters of policies are read through it
// (testPoliciesSeeAllOfTheirParameters).
func (i ownInformers) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	switch r {
	case corev1.SchemeGroupVersion.WithResource("pods"), corev1.SchemeGroupVersion.WithResource("nodes"):
		return nil, fmt.Errorf("the API server's own informer of %s does not hold all of them", r.Resource)
	}
	return i.SharedInformerFactory.ForResource(r)
}
