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

// endpoints are the addresses of a backend's endpoints that are ready, or, where none is, of those that serve while they end.
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
	var ready, ending []string
	for _, s := range found {
		for _, p := range s.Ports {
			if p.Port == nil || deref(p.Name) != name || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					ip, err := netip.ParseAddr(a)
					if err != nil {
						continue
					}
					at := netip.AddrPortFrom(ip, uint16(*p.Port)).String()
					switch {
					case e.Conditions.Ready == nil || *e.Conditions.Ready:
						ready = append(ready, at)
					case e.Conditions.Serving != nil && *e.Conditions.Serving:
						ending = append(ending, at)
					}
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.Sort(ready)
	return slices.Compact(ready)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
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
