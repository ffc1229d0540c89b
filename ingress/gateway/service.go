// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// ServiceLabel is the label of the Services of Gateways. Its value is LabelValue of the Gateway's name.
	ServiceLabel = "coracle.dev/gateway"
	// PortsAnnotation is where such a Service says at which port of nodes' addresses each of its ports is served: "80=10060,443=10061".
	PortsAnnotation = "coracle.dev/gateway-ports"
	// FirstNodePort and LastNodePort bound the ports of nodes' addresses that are for Gateways.
	FirstNodePort, LastNodePort = 10060, 10315
)

const longestLabel = 63

// ServiceName is the name of the Service of a Gateway, in the Gateway's namespace.
func ServiceName(gateway string) string {
	return shorten("gateway-"+strings.ReplaceAll(gateway, ".", "-"), gateway, strings.Contains(gateway, "."))
}

// LabelValue is the value of ServiceLabel: the Gateway's name, or a shortened form with a hash if it is too long for a label.
func LabelValue(gateway string) string { return shorten(gateway, gateway, false) }

// shorten keeps a text that fits into a label, and otherwise ends it with a hash of the name that it comes from.
func shorten(text, of string, always bool) string {
	if len(text) <= longestLabel && !always {
		return text
	}
	sum := sha256.Sum256([]byte(of))
	hash := hex.EncodeToString(sum[:])[:8]
	text = text[:min(len(text), longestLabel-len(hash)-1)]
	return strings.TrimRight(text, "-.") + "-" + hash
}

// FormatPorts writes the value of PortsAnnotation, in the order of the Service's ports.
func FormatPorts(ports map[int32]uint16) string {
	var out []string
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		out = append(out, fmt.Sprintf("%d=%d", port, ports[port]))
	}
	return strings.Join(out, ",")
}

// ParsePorts reads the value of PortsAnnotation. What is not of its form, or outside of FirstNodePort to LastNodePort, is left out, and so is a second node
// port for the same port.
func ParsePorts(value string) map[int32]uint16 {
	out := map[int32]uint16{}
	for _, field := range strings.Split(value, ",") {
		left, right, _ := strings.Cut(field, "=")
		port, err := strconv.ParseUint(left, 10, 16)
		if err != nil || port == 0 {
			continue
		}
		node, err := strconv.ParseUint(right, 10, 16)
		if err != nil || node < FirstNodePort || node > LastNodePort {
			continue
		}
		if _, ok := out[int32(port)]; !ok {
			out[int32(port)] = uint16(node)
		}
	}
	return out
}

// NodePorts are the ports of nodes' addresses that belong to ports of the Services of Gateways, by Service and port. Of two that name the same node port
// the older Service has it, and of two ports of a Service the lower one.
func NodePorts(services []*corev1.Service) map[ServicePort]uint16 {
	sorted := slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	out := map[ServicePort]uint16{}
	taken := map[uint16]bool{}
	for _, service := range sorted {
		ports := ParsePorts(service.Annotations[PortsAnnotation])
		for _, port := range slices.Sorted(maps.Keys(ports)) {
			node := ports[port]
			if taken[node] {
				continue
			}
			taken[node] = true
			out[ServicePort{Namespace: service.Namespace, Name: service.Name, Port: port}] = node
		}
	}
	return out
}

// ServicePort is a port of a Gateway's Service.
type ServicePort struct {
	Namespace, Name string
	Port            int32
}

// Site is the site of a port of a Gateway.
func Site(namespace, gateway string, port int32) string {
	return table.GatewaySite(namespace, gateway, int(port))
}
