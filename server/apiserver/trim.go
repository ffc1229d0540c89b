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

// ownInformers are the API server's own informers. For Pods and Nodes they hold reduced objects (trim). An admission
// policy may have such an object as its parameter and use any field of it. So ForResource returns an error for these
// kinds, and the policies' plugin makes an informer of its own while a policy uses the kind, as it does for custom
// resources.
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
