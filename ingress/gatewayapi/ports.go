// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// PortsName is the ConfigMap of kube-system that says which site has which port of nodes' addresses: "10060": "shop:web:80". It is the leader's alone to write:
// what stands in a tenant's namespace gives no port, and takes none from another Gateway.
const PortsName = "gateway-ports"

// ReadPorts are the ports of sites, by site. What is not of the form is left out.
func ReadPorts(c *corev1.ConfigMap) map[string]uint16 {
	out := map[string]uint16{}
	if c == nil {
		return out
	}
	for text, site := range c.Data {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || !table.IsGatewayPort(int(port)) {
			continue
		}
		if have, ok := out[site]; !ok || uint16(port) < have {
			out[site] = uint16(port)
		}
	}
	return out
}

// WithPorts are the Services of Gateways with the ports that their sites have, whatever they say themselves.
func WithPorts(services []*corev1.Service, ports map[string]uint16) []*corev1.Service {
	of := map[string]map[int32]uint16{} // by namespace and name of the Service
	for site, node := range ports {
		parts := strings.Split(site, ":")
		if len(parts) != 3 {
			continue
		}
		port, err := strconv.ParseInt(parts[2], 10, 32)
		if err != nil {
			continue
		}
		key := parts[0] + "/" + gateway.ServiceName(parts[1])
		if of[key] == nil {
			of[key] = map[int32]uint16{}
		}
		of[key][int32(port)] = node
	}
	out := make([]*corev1.Service, 0, len(services))
	for _, s := range services {
		if s.Labels[table.GatewayLabel] == "" {
			continue
		}
		copied := *s
		copied.Annotations = map[string]string{gateway.PortsAnnotation: gateway.FormatPorts(of[s.Namespace+"/"+s.Name])}
		out = append(out, &copied)
	}
	return out
}
