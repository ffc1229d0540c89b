// SPDX-License-Identifier: Apache-2.0

// Package gateway turns objects of the Gateway API into the table of the ingress proxy, and into the status of each object.
//
// Desired is a pure function of what the cluster holds: the order of its input changes nothing, and no object makes it fail. Servers use the table; the leader
// uses the status and the Services that Gateways need. The package reads no API and writes none, and reads no clock.
package gateway

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// ControllerName is the controllerName of the GatewayClasses that are served here.
	ControllerName gatewayv1.GatewayController = "coracle.dev/gateway"
	// ClassName is the name of the GatewayClass that every cluster has.
	ClassName = "coracle"
)

// State is what the cluster holds.
type State struct {
	Classes      []*gatewayv1.GatewayClass
	Gateways     []*gatewayv1.Gateway
	ListenerSets []*gatewayv1.ListenerSet
	HTTPRoutes   []*gatewayv1.HTTPRoute
	GRPCRoutes   []*gatewayv1.GRPCRoute
	TLSRoutes    []*gatewayv1.TLSRoute
	Grants       []*gatewayv1.ReferenceGrant
	Policies     []*gatewayv1.BackendTLSPolicy
	// Namespaces are there for their labels.
	Namespaces []*corev1.Namespace
	// GatewayServices are the Services with the label ServiceLabel, of all namespaces.
	GatewayServices []*corev1.Service
	// Service gives a Service, or nil if there is none.
	Service func(types.NamespacedName) *corev1.Service
	// Secret and ConfigMap give an object, or nil if there is none.
	Secret    func(types.NamespacedName) *corev1.Secret
	ConfigMap func(types.NamespacedName) *corev1.ConfigMap
	// Now is the lastTransitionTime of conditions that change.
	Now time.Time
}

// Result is what follows from a State.
type Result struct {
	Sections table.Sections

	// The wanted status of each object that concerns this controller, or that still has an entry of it. Entries of other controllers are in it as they were.
	// A status that is equal to the object's own need not be written.
	ClassStatus       map[string]gatewayv1.GatewayClassStatus
	GatewayStatus     map[types.NamespacedName]gatewayv1.GatewayStatus
	ListenerSetStatus map[types.NamespacedName]gatewayv1.ListenerSetStatus
	HTTPRouteStatus   map[types.NamespacedName]gatewayv1.HTTPRouteStatus
	GRPCRouteStatus   map[types.NamespacedName]gatewayv1.GRPCRouteStatus
	TLSRouteStatus    map[types.NamespacedName]gatewayv1.TLSRouteStatus
	PolicyStatus      map[types.NamespacedName]gatewayv1.PolicyStatus

	// Services are those that the Gateways of this controller need, by namespace and name. Gateways that are not accepted, or have no listener that can be
	// served, have none.
	Services map[types.NamespacedName]Service

	// Secrets and ConfigMaps are those whose content the result depends on, whether they exist or not.
	Secrets, ConfigMaps map[types.NamespacedName]bool
}

// Service is what a Gateway's Service has to be.
type Service struct {
	Gateway *gatewayv1.Gateway
	// Ports are those of the Gateway's listeners, all of TCP, each once and in their order.
	Ports []int32
	// Addresses are those that the Gateway asks for; none leaves the choice to the pools.
	Addresses []string
	// Labels and Annotations come from spec.infrastructure. None is of the domain coracle.dev.
	Labels, Annotations map[string]string
}

// Desired compiles the state.
func Desired(s State) (Result, error) {
	return Result{Sections: table.Sections{}}, nil
}
