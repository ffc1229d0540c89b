// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// PortsName is the ConfigMap of kube-system that says which site has which port of nodes' addresses: "10060":
// "shop:web:80". It is the leader's alone to write: what stands in a tenant's namespace gives no port, and takes none
// from another Gateway.
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

// Labelled selects the Services that say that they are of Gateways.
var Labelled = func() labels.Selector {
	s, err := labels.Parse(gateway.ServiceLabel)
	if err != nil {
		panic(err) // of a constant
	}
	return s
}()
