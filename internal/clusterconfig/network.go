// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import "cmp"

// Network back ends: how packets get to pods of other nodes (docs/adr/0073-between-nodes.md).
const (
	// NetworkVXLAN encapsulates packets in UDP datagrams. It works wherever nodes can reach one another.
	NetworkVXLAN = "vxlan"
	// NetworkHostGateway makes each node the gateway to its pods. It encapsulates nothing, and requires that all nodes
	// are on one segment.
	NetworkHostGateway = "host-gw"
	// NetworkWireGuard encrypts packets between nodes.
	NetworkWireGuard = "wireguard"
	// NetworkNone leaves the pod network to another plugin that the operator installs.
	NetworkNone = "none"
)

// NetworkBackends are all network back ends, the default first.
var NetworkBackends = []string{NetworkVXLAN, NetworkHostGateway, NetworkWireGuard, NetworkNone}

// VXLANPort is the default port of the kernel and of flannel, so that firewall instructions for these apply. RFC 7348
// has port 4789, which clouds use themselves.
const VXLANPort = 8472

// WireGuardPort is the UDP port of a node's WireGuard tunnel. It is WireGuard's usual port.
const WireGuardPort = 51820

// TunnelPort returns the UDP port at which encapsulated packets from other nodes arrive with a back end. It returns 0
// for a back end without encapsulation.
func TunnelPort(backend string) int {
	switch backend {
	case NetworkVXLAN:
		return VXLANPort
	case NetworkWireGuard:
		return WireGuardPort
	}
	return 0
}

// Backend returns NetworkBackend or the default.
func (s Settings) Backend() string { return cmp.Or(s.NetworkBackend, NetworkBackends[0]) }

// WireGuardAnnotation on a Node is the public key of its end of the tunnel. Each node writes its own.
const WireGuardAnnotation = "coracle.dev/wireguard"

// UnderlayAnnotation is an annotation of a Node with the addresses, separated by commas, at which other nodes reach its
// pods. It is set when these differ from the Node's own addresses (--network-iface, --network-external-ip). Each node
// writes its own.
const UnderlayAnnotation = "coracle.dev/underlay"

// Names in RBAC rules for external IPs. A user who has the verb for the resource in a namespace may give external IPs
// to its Services. Each external IP is a resource name. The API serves no such resource; only the API server's
// admission checks it. ExternalIPsRole has the rule for every address, and no other ClusterRole includes that rule.
const (
	ExternalIPsGroup    = "coracle.dev"
	ExternalIPsResource = "serviceexternalips"
	ExternalIPsVerb     = "use"
	StatusRole          = "coracle:status"  // allows requests to status.ClusterPath
	ClocksRole          = "coracle:clocks"  // allows nodes requests to status.ClocksPath
	ConsoleRole         = "coracle:console" // allows all users requests to status.ConsoleSettingPath, NamespacesPath and MetricsHistoryPath
	ExternalIPsRole     = "coracle:service-external-ips"
)

// NamespacesPath is the path at which a server's API lists the namespaces in which RBAC gives the user any right. Every
// authenticated user may read it: the ClusterRole ConsoleRole is bound to all of them. The response is a Namespaces in
// JSON.
const NamespacesPath = "/coracle/namespaces"

// MetricsHistoryPath is the path at which a server's API shows the CPU and memory use of the last day of a pod
// (?namespace=NAMESPACE&pod=NAME) or a node (?node=NAME), to users who may get it in metrics.k8s.io. Another parameter,
// minutes, shortens the time. The response is a resourcemetrics.History in JSON.
const MetricsHistoryPath = "/coracle/metrics-history"

// Namespaces holds names of namespaces, sorted.
type Namespaces struct {
	Namespaces []string `json:"namespaces"`
}
