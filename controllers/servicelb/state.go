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
	// Class is the class of the Services that coracle serves. It also serves those without a class.
	Class = "coracle.dev/servicelb"
	// Condition is in the status of each Service that coracle serves, and describes its state.
	Condition = loadbalancer.Condition
	// NodeLabel, with the value "true" on at least one node, restricts Services to the nodes that have it.
	NodeLabel = clusterconfig.LoadBalancerLabel
	// k3sNodeLabel is k3s' name of the same label.
	k3sNodeLabel = clusterconfig.K3sLoadBalancerLabel
	// serverLabel is on the nodes of servers. A node cannot set it on itself.
	serverLabel = "node-role.kubernetes.io/control-plane"
)

// Port is a port of one protocol.
type Port = loadbalancer.Port

// State is the input of Plan.
type State struct {
	// Services are all Services of the cluster: those that are not load balancers may have node ports.
	Services []*corev1.Service
	Nodes    []*corev1.Node
	// Pods are the pods with ports on their nodes' addresses that have not ended. Others are ignored.
	Pods []*corev1.Pod
	// Slices are those of Services that use local endpoints only. Others are ignored.
	Slices []*discoveryv1.EndpointSlice
	// Reserved are the ports at nodes' addresses that the cluster itself needs, with their purposes.
	Reserved map[Port]string
	// NodePorts is the range from which the API server allocates node ports. It is empty if unset.
	NodePorts utilnet.PortRange
	// Pools are addresses for Services, in the order in which they are searched. A Service without a pool gets nodes'
	// addresses. Barred are addresses that have an owner.
	Pools  []Pool
	Barred []netip.Addr
	// Joined are addresses with which machines have joined. No Service gets one that it did not have before.
	Joined []netip.Addr
	// InUse are addresses of a pool that another machine uses, with its Ethernet address. Their holders report them.
	InUse map[netip.Addr]string
	// Namespaces are the labels of the namespaces, if a pool selects by them.
	Namespaces map[string]labels.Set
	// Disabled says that no Service is served, and that allocated addresses are removed.
	Disabled bool
}

func serviceKey(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

// serves reports whether coracle allocates addresses to a Service.
func (s *State) serves(svc *corev1.Service) bool {
	if s.Disabled || svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil {
		return false
	}
	return svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == Class
}

// isLocal reports whether a Service's external traffic stays on the node where it arrives.
func isLocal(svc *corev1.Service) bool {
	return svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// byAge returns Services sorted by age, the oldest first. An older one has precedence over younger ones.
func byAge(services []*corev1.Service) []*corev1.Service {
	return slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name))
	})
}

// withEndpoints returns the nodes with endpoints of each Service: ready ones, or if there is none, terminating ones
// that still serve.
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
