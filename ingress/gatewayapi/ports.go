// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// PortsName is the name of the ConfigMap in kube-system with the node port of each site: "10060": "shop:web:80". Only
// the leader writes it. Objects in a tenant's namespace thus allocate no port, and take none from another Gateway.
const PortsName = "gateway-ports"

// ReadPorts returns the node ports by site. It ignores invalid entries.
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

// Labelled selects Services with the label of Services of Gateways.
var Labelled = func() labels.Selector {
	s, err := labels.Parse(gateway.ServiceLabel)
	if err != nil {
		panic(err) // the selector is a constant
	}
	return s
}()
