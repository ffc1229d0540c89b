// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

const (
	// Class is the class of Services that are served here; those without a class are, too.
	Class = "coracle.dev/servicelb"
	// Condition is in the status of each Service that is served here, and says how that goes.
	Condition = loadbalancer.Condition
	// NodeLabel, with the value "true" on one node at least, keeps Services to the nodes that have it.
	NodeLabel = clusterconfig.LoadBalancerLabel
	// k3sNodeLabel is the same label as k3s has it.
	k3sNodeLabel = clusterconfig.K3sLoadBalancerLabel
	// serverLabel is on the nodes of servers, and no node can give it to itself.
	serverLabel = "node-role.kubernetes.io/control-plane"
)

// Port is a port of one protocol.
type Port = loadbalancer.Port

// State is everything that Plan looks at.
type State struct {
	// Services are all of the cluster: those that are no load balancers' have node ports.
	Services []*corev1.Service
	Nodes    []*corev1.Node
	// Pods are those with ports on their nodes' addresses that have not ended; others are passed over.
	Pods []*corev1.Pod
	// Slices are those of Services that send to local endpoints only; others are passed over.
	Slices []*discoveryv1.EndpointSlice
	// Reserved are the ports at nodes' addresses that the cluster itself needs, with what for.
	Reserved map[Port]string
	// NodePorts are the ports of which the API server gives out node ports. None where it is not set.
	NodePorts utilnet.PortRange
	// Pools are addresses for Services, in the order in which they are looked through; a Service that none is for gets
	// those of nodes. Barred are addresses that have an owner.
	Pools  []Pool
	Barred []netip.Addr
	// Joined are addresses with which machines have joined. No Service gets one that it has not had.
	Joined []netip.Addr
	// InUse are addresses of a pool that another machine uses, with its Ethernet address, as their holders say.
	InUse map[netip.Addr]string
	// Namespaces are the labels of the namespaces, where a pool asks for them.
	Namespaces map[string]labels.Set
	// Disabled is the load balancer that serves no Service, and takes back what it gave.
	Disabled bool
}

// key is a Service's name.
func key(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

// serves says whether a Service is to have addresses from here.
func (s *State) serves(svc *corev1.Service) bool {
	if s.Disabled || svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil {
		return false
	}
	return svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == Class
}

// local says whether a Service's traffic from outside stays on the node where it arrives.
func local(svc *corev1.Service) bool {
	return svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// byAge sorts Services, the oldest first: it keeps what a younger one would like to have, too.
func byAge(services []*corev1.Service) []*corev1.Service {
	return slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name))
	})
}

// withEndpoints are the nodes with endpoints of each Service: ready ones, or where there is none of those, ones that
// end and still serve.
func withEndpoints(all []*discoveryv1.EndpointSlice) map[types.NamespacedName]map[string]bool {
	ready, serving := map[types.NamespacedName]map[string]bool{}, map[types.NamespacedName]map[string]bool{}
	for _, slice := range all {
		k := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		for _, e := range slice.Endpoints {
			into := ready
			switch c := e.Conditions; {
			case e.NodeName == nil:
				continue
			case c.Ready == nil || *c.Ready:
			case c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating:
				into = serving
			default:
				continue
			}
			if into[k] == nil {
				into[k] = map[string]bool{}
			}
			into[k][*e.NodeName] = true
		}
	}
	for k, nodes := range serving {
		if ready[k] == nil {
			ready[k] = nodes
		}
	}
	return ready
}
