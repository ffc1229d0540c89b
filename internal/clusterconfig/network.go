// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import "cmp"

// Ways for packets between pods of different nodes (docs/adr/0073-between-nodes.md).
const (
	// NetworkVXLAN wraps packets into UDP datagrams: it works wherever nodes reach one another.
	NetworkVXLAN = "vxlan"
	// NetworkHostGateway makes each node the gateway to its pods: nothing is wrapped, and all nodes have to be on one
	// segment.
	NetworkHostGateway = "host-gw"
	// NetworkWireGuard encrypts packets between nodes.
	NetworkWireGuard = "wireguard"
	// NetworkNone leaves the pod network to another plugin that the operator installs.
	NetworkNone = "none"
)

// NetworkBackends are all ways, the default first.
var NetworkBackends = []string{NetworkVXLAN, NetworkHostGateway, NetworkWireGuard, NetworkNone}

// VXLANPort is the kernel's own default and flannel's, so that firewalls' recipes for those fit. The number of RFC 7348
// is 4789, which clouds use themselves.
const VXLANPort = 8472

// WireGuardPort is the UDP port of a node's tunnel with WireGuard, that one's usual one.
const WireGuardPort = 51820

// TunnelPort is the UDP port at which other nodes' packets come with a back end; 0 where they come as they are.
func TunnelPort(backend string) int {
	switch backend {
	case NetworkVXLAN:
		return VXLANPort
	case NetworkWireGuard:
		return WireGuardPort
	}
	return 0
}

// Backend is NetworkBackend or the default.
func (s Settings) Backend() string { return cmp.Or(s.NetworkBackend, NetworkBackends[0]) }

// WireGuardAnnotation on a node has the public key of its end of the tunnel. Each node writes its own.
const WireGuardAnnotation = "coracle.dev/wireguard"

// UnderlayAnnotation on a node has the addresses, with commas in between, at which other nodes reach its pods when
// these are others than the node's own (--network-iface, --network-external-ip). Each node writes its own.
const UnderlayAnnotation = "coracle.dev/underlay"

// Words of RBAC for external IPs: a user with the verb of the resource in a namespace may give its Services
// external IPs, each of which is a name of the resource. Nothing is served by that name; the API server's admission
// asks for it. The ClusterRole has the rule for every address, and no other role of the cluster's includes it.
const (
	ExternalIPsGroup    = "coracle.dev"
	ExternalIPsResource = "serviceexternalips"
	ExternalIPsVerb     = "use"
	StatusRole          = "coracle:status"  // lets users ask at status.ClusterPath
	ConsoleRole         = "coracle:console" // lets all users ask at status.ConsolePath and NamespacesPath
	ExternalIPsRole     = "coracle:service-external-ips"
)

// NamespacesPath is where the API of a server names the namespaces in which RBAC gives the user something, to every
// user that it knows: the ClusterRole ConsoleRole is bound to all of them. The answer is a Namespaces in JSON.
const NamespacesPath = "/coracle/namespaces"

// Namespaces are names of namespaces, sorted.
type Namespaces struct {
	Namespaces []string `json:"namespaces"`
}
