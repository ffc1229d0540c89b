// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/outside"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// upstreamSlices is the manager of EndpointSlices that follow from the pods of a Service. All others may name any
// address.
const upstreamSlices = "endpointslice-controller.k8s.io"

// barred returns, by Service, the endpoints of hand-written EndpointSlices to which the proxies open no connection, as
// agent/ingress has the kernel refuse them.
func (c *Controller) barred(ofNode map[netip.Addr]bool) map[types.NamespacedName][]string {
	all, _ := c.slices.List(labels.Everything()) // a lister of a cache returns no error
	out := map[types.NamespacedName][]string{}
	for _, s := range all {
		if s.Labels[discoveryv1.LabelManagedBy] == upstreamSlices {
			continue
		}
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil { // an FQDN
					continue
				}
				for _, p := range s.Ports {
					if p.Port != nil && c.isBarred(a, uint16(*p.Port), ofNode) {
						out[name] = append(out[name], net.JoinHostPort(text, strconv.Itoa(int(*p.Port))))
					}
				}
			}
		}
	}
	for _, found := range out {
		slices.Sort(found)
	}
	return out
}

// isBarred reports whether the proxies open no connection to an address.
func (c *Controller) isBarred(a netip.Addr, port uint16, ofNode map[netip.Addr]bool) bool {
	return outside.Local(a) || isInNetworks(a, c.o.ServiceCIDRs) || ofNode[a] && slices.Contains(c.o.ReservedNodePorts, port)
}

func isInNetworks(a netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

func (c *Controller) nodeAddresses() map[netip.Addr]bool {
	nodes, _ := c.nodes.List(labels.Everything()) // a lister of a cache returns no error
	out := map[netip.Addr]bool{}
	for _, n := range nodes {
		for _, a := range clusterconfig.NodeAddresses(n, corev1.NodeInternalIP, corev1.NodeExternalIP) {
			out[a] = true
		}
	}
	return out
}

// atNodes reports whether clients reach the ingress at addresses of nodes.
func (c *Controller) atNodes() bool {
	svc := c.ownService()
	nodes, _ := c.nodes.List(labels.Everything()) // a lister of a cache returns no error
	return svc != nil && len(svc.Status.LoadBalancer.Ingress) > 0 && !ownAddresses(svc, nodes)
}
