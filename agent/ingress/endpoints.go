// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/proxy"
)

func everything() labels.Selector { return labels.Everything() }

func ofService(name string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name})
}

// complete is a table with the endpoints of the Services that it names.
func (n *Node) complete(s table.Sections) table.Sections {
	out := maps.Clone(s)
	settings := table.Settings{}
	if own := s[table.KindSettings]; own != nil {
		if err := json.Unmarshal(own, &settings); err != nil {
			n.o.Logger.Warn("ingress: the settings of the table cannot be read", "error", err)
		}
	}
	settings.ClusterNetworks = nil
	for _, p := range slices.Concat(n.o.PodCIDRs, n.o.ServiceCIDRs) {
		settings.ClusterNetworks = append(settings.ClusterNetworks, p.String())
	}
	for _, a := range n.nodeAddresses() {
		settings.ClusterNetworks = append(settings.ClusterNetworks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	slices.Sort(settings.ClusterNetworks)
	if err := out.Put(table.KindSettings, settings); err != nil {
		n.o.Logger.Warn("ingress: settings cannot be written", "error", err)
	}
	backends, err := s.Backends()
	if err != nil {
		n.o.Logger.Warn("ingress: a section of the table cannot be read; it is served as far as it can be", "error", err)
	}
	for key, b := range backends {
		if err := out.Put(key, table.Endpoints{Addresses: n.endpoints(b)}); err != nil {
			n.o.Logger.Warn("ingress: endpoints cannot be written", "error", err)
		}
	}
	return out
}

// endpoints are the addresses of a backend's endpoints to which this node's Service proxy would send, too.
func (n *Node) endpoints(b table.Backend) []string {
	svc, err := n.o.Services.Lister().Services(b.Namespace).Get(b.Service)
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	name, ok := portName(svc, b.Port)
	if !ok {
		return nil
	}
	found, err := n.o.EndpointSlices.Lister().EndpointSlices(b.Namespace).List(ofService(b.Service))
	if err != nil {
		return nil
	}
	var out []string
	for _, at := range n.place().Endpoints(found, name) {
		out = append(out, at.String())
	}
	return out
}

// place is where this node is and which others it does not reach.
func (n *Node) place() proxy.Place {
	p := proxy.Place{Node: n.o.NodeName}
	if node, err := n.o.Nodes.Lister().Get(n.o.NodeName); err == nil {
		p.Zone = node.Labels[corev1.LabelTopologyZone]
	}
	if n.o.Unreachable != nil {
		p.Down = n.o.Unreachable.Nodes()
	}
	return p
}

// portName is the name of a Service's port, which is given by its name or its number.
func portName(svc *corev1.Service, port string) (name string, ok bool) {
	number, err := strconv.Atoi(port)
	for _, p := range svc.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		if port == "" || p.Name == port || err == nil && int(p.Port) == number {
			return p.Name, true
		}
	}
	return "", false
}
