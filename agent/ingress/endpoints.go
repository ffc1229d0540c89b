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
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/proxy"
)

func allObjects() labels.Selector { return labels.Everything() }

// complete returns a table with the endpoints of the Services that it names.
func (n *Node) complete(s table.Sections) table.Sections {
	out := maps.Clone(s)
	settings := table.Settings{}
	if own := s[table.KindSettings]; own != nil {
		if err := json.Unmarshal(own, &settings); err != nil {
			n.o.Logger.Warn("ingress: the settings of the table cannot be read", "error", err)
		}
	}
	nodes := convert.Slice(n.nodeAddresses(), func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) })
	settings.ClusterNetworks = convert.Slice(slices.Concat(n.o.PodCIDRs, n.o.ServiceCIDRs, nodes), netip.Prefix.String)
	slices.Sort(settings.ClusterNetworks)
	if err := out.Put(table.KindSettings, settings); err != nil {
		n.o.Logger.Warn("ingress: settings cannot be written", "error", err)
	}
	n.putHTTP3(out)
	if n.backends == nil { // reading the table takes longer than the rest of this function
		var err error
		if n.backends, err = s.Backends(); err != nil {
			n.o.Logger.Warn("ingress: a section of the table cannot be read; it is served as far as it can be", "error", err)
		}
	}
	found, proxyNode := n.slicesOf(n.backends), n.proxyNode()
	for key, b := range n.backends {
		if err := out.Put(key, table.Endpoints{Addresses: n.endpoints(b,
			found[types.NamespacedName{Namespace: b.Namespace, Name: b.Service}], proxyNode)}); err != nil {
			n.o.Logger.Warn("ingress: endpoints cannot be written", "error", err)
		}
	}
	return out
}

// slicesOf returns the EndpointSlices of the Services that backends name. One pass over all slices is faster than one
// over a namespace's for each of a thousand Services.
func (n *Node) slicesOf(backends map[string]table.Backend) map[types.NamespacedName][]*discoveryv1.EndpointSlice {
	out := make(map[types.NamespacedName][]*discoveryv1.EndpointSlice, len(backends))
	for _, b := range backends {
		out[types.NamespacedName{Namespace: b.Namespace, Name: b.Service}] = nil
	}
	all, _ := n.o.EndpointSlices.Lister().List(allObjects()) // it is a cache: listing cannot fail
	for _, s := range all {
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		if have, wanted := out[name]; wanted {
			out[name] = append(have, s)
		}
	}
	return out
}

// endpoints returns the addresses of a backend's endpoints that this node's Service proxy would use, too.
func (n *Node) endpoints(b table.Backend, found []*discoveryv1.EndpointSlice, proxyNode proxy.Node) []string {
	svc, err := n.o.Services.Lister().Services(b.Namespace).Get(b.Service)
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	name, ok := portName(svc, b.Port)
	if !ok {
		return nil
	}
	return convert.Slice(proxyNode.Endpoints(found, name), netip.AddrPort.String)
}

// proxyNode returns this node's zone and which other nodes it does not reach.
func (n *Node) proxyNode() proxy.Node {
	p := proxy.Node{Name: n.o.NodeName}
	if node, err := n.o.Nodes.Lister().Get(n.o.NodeName); err == nil {
		p.Zone = node.Labels[corev1.LabelTopologyZone]
	}
	if n.o.Unreachable != nil {
		p.Unreachable = n.o.Unreachable.Nodes()
	}
	return p
}

// portName returns the name of a Service's port. port is its name or its number.
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
