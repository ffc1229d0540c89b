// SPDX-License-Identifier: Apache-2.0

// Package gateway turns objects of the Gateway API into the table of the ingress proxy, and into the status of each
// object.
//
// Desired is a pure function of the cluster's objects: the order of its input changes nothing, and no object makes it
// fail. Servers use the table. The leader uses the status and the Services that Gateways need. The package reads and
// writes no API, and reads no clock.
package gateway

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// ControllerName is the controllerName of the GatewayClasses that coracle serves.
	ControllerName gatewayv1.GatewayController = "coracle.dev/gateway"
	// ClassName is the name of the GatewayClass that every cluster has.
	ClassName = "coracle"
)

// State is the input of Desired: the objects of the cluster.
type State struct {
	Classes      []*gatewayv1.GatewayClass
	Gateways     []*gatewayv1.Gateway
	ListenerSets []*gatewayv1.ListenerSet
	HTTPRoutes   []*gatewayv1.HTTPRoute
	GRPCRoutes   []*gatewayv1.GRPCRoute
	TLSRoutes    []*gatewayv1.TLSRoute
	Grants       []*gatewayv1.ReferenceGrant
	Policies     []*gatewayv1.BackendTLSPolicy
	// Namespaces are needed for their labels.
	Namespaces []*corev1.Namespace
	// GatewayServices are the Services with the label ServiceLabel, of all namespaces.
	GatewayServices []*corev1.Service
	// NodePorts are the ports, on nodes' addresses, of ports of Gateways, by their sites (Site). Each node port occurs
	// once.
	NodePorts map[string]uint16
	// Service returns a Service, or nil if there is none.
	Service func(types.NamespacedName) *corev1.Service
	// Secret and ConfigMap return an object, or nil if there is none.
	Secret    func(types.NamespacedName) *corev1.Secret
	ConfigMap func(types.NamespacedName) *corev1.ConfigMap
	// CRDVersion is the version of the Gateway API's CRDs in the cluster (BundleVersionAnnotation), such as v1.6.3.
	// Empty is for an unknown version.
	CRDVersion string
	// Memory is a cache that makes the next call with the same Memory faster. nil is for no cache.
	Memory *Memory
	// Now becomes the lastTransitionTime of conditions that change.
	Now time.Time
}

// Result is the output of Desired.
type Result struct {
	Sections table.Sections

	// The desired status of each object that concerns this controller, or that still has an entry of it. Entries of
	// other controllers stay unchanged. A status that is equal to the object's own need not be written.
	ClassStatus       map[string]gatewayv1.GatewayClassStatus
	GatewayStatus     map[types.NamespacedName]gatewayv1.GatewayStatus
	ListenerSetStatus map[types.NamespacedName]gatewayv1.ListenerSetStatus
	HTTPRouteStatus   map[types.NamespacedName]gatewayv1.HTTPRouteStatus
	GRPCRouteStatus   map[types.NamespacedName]gatewayv1.GRPCRouteStatus
	TLSRouteStatus    map[types.NamespacedName]gatewayv1.TLSRouteStatus
	PolicyStatus      map[types.NamespacedName]gatewayv1.PolicyStatus

	// Services are the Services that the Gateways of this controller need, by namespace and name. A Gateway that is not
	// accepted, or that has no listener that can be served, has none.
	Services map[types.NamespacedName]Service

	// Secrets and ConfigMaps are the names of the objects whose content the result depends on, whether they exist or
	// not.
	Secrets, ConfigMaps map[types.NamespacedName]bool
}

// Service is the desired Service of a Gateway.
type Service struct {
	Gateway *gatewayv1.Gateway
	// Ports are the TCP ports of the Gateway's listeners, each once, in ascending order.
	Ports []int32
	// Addresses are the requested addresses of the Gateway. None leaves the choice to the pools.
	Addresses []string
	// Labels and Annotations come from spec.infrastructure. ServiceLabel is not among the labels.
	Labels, Annotations map[string]string
}

type compiler struct {
	s        State
	r        Result
	gateways map[types.NamespacedName]*gateway // of this controller, whether they are accepted or not
	sets     map[types.NamespacedName]*listenerSet
	// namespaces are the labels of namespaces.
	namespaces  map[string]labels.Set
	grants      map[string][]*gatewayv1.ReferenceGrant      // by namespace
	services    map[types.NamespacedName]*corev1.Service    // of Gateways
	gatewayOf   map[types.NamespacedName]*gatewayv1.Gateway // by the names of their Services
	policies    policies
	allPolicies []*policy
	routes      []*route
	usedMemory  map[string]int // bytes of the proxies' memory, by namespace
}

// Desired compiles the state.
func Desired(s State) (Result, error) {
	c := &compiler{
		s: s, gateways: map[types.NamespacedName]*gateway{}, sets: map[types.NamespacedName]*listenerSet{},
		namespaces: map[string]labels.Set{}, grants: map[string][]*gatewayv1.ReferenceGrant{},
		usedMemory: map[string]int{},
		services:   map[types.NamespacedName]*corev1.Service{}, gatewayOf: map[types.NamespacedName]*gatewayv1.Gateway{},
		r: Result{
			Sections: table.Sections{}, ClassStatus: map[string]gatewayv1.GatewayClassStatus{},
			GatewayStatus:     map[types.NamespacedName]gatewayv1.GatewayStatus{},
			ListenerSetStatus: map[types.NamespacedName]gatewayv1.ListenerSetStatus{},
			HTTPRouteStatus:   map[types.NamespacedName]gatewayv1.HTTPRouteStatus{},
			GRPCRouteStatus:   map[types.NamespacedName]gatewayv1.GRPCRouteStatus{},
			TLSRouteStatus:    map[types.NamespacedName]gatewayv1.TLSRouteStatus{},
			PolicyStatus:      map[types.NamespacedName]gatewayv1.PolicyStatus{},
			Services:          map[types.NamespacedName]Service{},
			Secrets:           map[types.NamespacedName]bool{},
			ConfigMaps:        map[types.NamespacedName]bool{},
		},
	}
	c.s.Memory = cmp.Or(c.s.Memory, &Memory{})
	c.s.Memory.evictUnused()
	for _, n := range s.Namespaces {
		c.namespaces[n.Name] = n.Labels
	}
	for _, g := range s.Grants {
		c.grants[g.Namespace] = append(c.grants[g.Namespace], g)
	}
	for _, s := range s.GatewayServices {
		c.services[nameOf(s)] = s
	}
	classes := c.classes()
	for _, g := range byAge(s.Gateways) {
		if class, ok := classes[g.Spec.GatewayClassName]; ok && g.DeletionTimestamp == nil {
			c.gateway(g, class)
		}
	}
	for _, l := range byAge(s.ListenerSets) {
		if l.DeletionTimestamp == nil {
			c.listenerSet(l)
		}
	}
	for _, g := range c.gateways {
		g.resolveConflicts()
	}
	c.readPolicies()
	c.boundSecrets()
	c.boundListeners()
	c.judgePolicies()
	c.readRoutes()
	c.attach()
	c.bound()
	c.ancestors()
	if err := c.finishPolicies(); err != nil {
		return Result{}, err
	}
	for _, g := range c.gateways {
		if err := c.finishGateway(g); err != nil {
			return Result{}, err
		}
	}
	for _, l := range c.sets {
		c.finishSet(l)
	}
	for _, r := range c.routes {
		c.routeStatus(r)
	}
	return c.r, c.r.Sections.PutCharges("gateway", c.usedMemory, c.youngestRoute)
}

// byAge returns the objects in the order of their precedence: the oldest first, those of the same age by namespace and
// name.
func byAge[T metav1.Object](objects []T) []T {
	return slices.SortedFunc(slices.Values(objects), func(a, b T) int { return compareAge(a, b) })
}

func compareAge(a, b metav1.Object) int {
	at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	return cmp.Or(at.Compare(bt.Time), strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// secret and configMap return an object, and record that the result depends on it.
func (c *compiler) secret(name types.NamespacedName) *corev1.Secret {
	c.r.Secrets[name] = true
	if c.s.Secret == nil {
		return nil
	}
	return c.s.Secret(name)
}

func (c *compiler) configMap(name types.NamespacedName) *corev1.ConfigMap {
	c.r.ConfigMaps[name] = true
	if c.s.ConfigMap == nil {
		return nil
	}
	return c.s.ConfigMap(name)
}

func (c *compiler) service(name types.NamespacedName) *corev1.Service {
	if c.s.Service == nil {
		return nil
	}
	return c.s.Service(name)
}
