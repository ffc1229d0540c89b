// SPDX-License-Identifier: Apache-2.0

// Package addresspool has the kind AddressPool: addresses for Services of type LoadBalancer, as an object of the API.
//
// It owns the definition of that kind in the cluster. controllers/servicelb uses the addresses.
package addresspool

import (
	_ "embed" // for the definition
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/coracle-k8s/coracle/controllers/definition"
)

//go:embed addresspool.yaml
var poolYAML []byte

// Resource returns the API resource of AddressPools.
func Resource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "coracle.dev", Version: "v1alpha1", Resource: "addresspools"}
}

// Kind returns the CustomResourceDefinition of AddressPools.
func Kind() definition.Kind { return definition.Kind{Resource: Resource(), YAML: poolYAML} }

// AddressPool is an AddressPool as the API has it. addresspool.yaml describes its fields.
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   Spec   `json:"spec"`
	Status Status `json:"status,omitzero"`
}

// Spec is the desired state of an AddressPool.
type Spec struct {
	Addresses         []string              `json:"addresses"`
	AutoAssign        *bool                 `json:"autoAssign,omitempty"` // the API server's default is true
	AvoidBuggyIPs     bool                  `json:"avoidBuggyIPs,omitempty"`
	ServiceSelector   *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	NodeSelector      *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// Status says how many addresses a pool has, how many are used, and whether all can be used.
type Status struct {
	Total      int64              `json:"total"`
	Used       int64              `json:"used"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Ready is the condition that says whether all addresses of a pool can be used.
const Ready = "Ready"

// From reads an object of the API. The result is a deep copy.
func From(u *unstructured.Unstructured) (*AddressPool, error) {
	p := &AddressPool{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, p); err != nil {
		return nil, fmt.Errorf("reading the AddressPool %s: %w", u.GetName(), err)
	}
	return p, nil
}

// WithStatus returns a copy of an object with another status.
func WithStatus(u *unstructured.Unstructured, s Status) (*unstructured.Unstructured, error) {
	status, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&s)
	if err != nil {
		return nil, fmt.Errorf("writing the status of the AddressPool %s: %w", u.GetName(), err)
	}
	out := u.DeepCopy()
	out.Object["status"] = status
	return out, nil
}
