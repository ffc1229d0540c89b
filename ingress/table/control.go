// SPDX-License-Identifier: Apache-2.0

package table

import (
	"crypto/sha256"
	"encoding/hex"
	"syscall"
)

// Path is the path at which an API server serves the stream of the table.
const Path = "/coracle/ingress"

// Response is the proxy's response to a Commit and to Change.Sockets: one line of JSON.
type Response struct {
	// Problems are the faults of sections, as text for users, by the key of the section. The proxy serves these
	// sections as far as it can.
	Problems map[string]string `json:"problems,omitempty"`
	// Sockets, in the response to Change.Sockets, names the listening sockets whose descriptors are sent with the line
	// (SCM_RIGHTS), in this order. A proxy that has begun to drain has none left.
	Sockets []string `json:"sockets,omitempty"`
	// Stats are the proxy's counters, in the response to Change.Stats.
	Stats *Stats `json:"stats,omitempty"`
	// PID is the process ID of the proxy, in the response to Change.Sockets. Limits are those that it was started with.
	PID    int    `json:"pid,omitempty"`
	Limits Limits `json:"limits,omitzero"`
}

// Limits are the limits of a proxy that it gets with its environment.
type Limits struct {
	// Memory is GOMEMLIMIT in bytes, and Connections the greatest number of clients' connections.
	Memory      int64 `json:"memory,omitempty"`
	Connections int   `json:"connections,omitempty"`
}

// HandedOver is the signal after which a proxy accepts no more connections, because another proxy serves on its
// sockets. Its requests may go on for longer than after SIGTERM. SIGTERM may still follow.
const HandedOver = syscall.SIGUSR2

// Names and environment variables with which the agent starts the proxy.
const (
	// ControlName is the name of the descriptor of the Unix socket on which the proxy listens for its agent, in
	// EnvNames.
	ControlName = "control"
	// EnvNames is the environment variable with the names of the listening sockets, from descriptor 3 on, separated by
	// commas. Each name except ControlName consists of a site, a slash, and HTTP or HTTPS: "ingress/http",
	// "ingress/https", "shop:web:80/http".
	EnvNames = "CORACLE_INGRESS_SOCKETS"
	// EnvUser is the environment variable with the number of the user and of the group to which the proxy changes
	// before it reads anything. The proxy is started as root, since its program lies in a folder of root's. Without the
	// variable it keeps its user and group.
	EnvUser = "CORACLE_INGRESS_USER"
	// EnvConnections is the environment variable with Limits.Connections. Limits.Memory is in GOMEMLIMIT.
	EnvConnections = "CORACLE_INGRESS_CONNECTIONS"
	// HTTP and HTTPS are the kinds of listeners. QUIC is the kind of a UDP socket for HTTP/3.
	HTTP, HTTPS, QUIC = "http", "https", "http3"
)

const (
	// FirstGatewayPort and LastGatewayPort are the limits of the range of ports at which proxies listen for Gateways,
	// on the addresses of nodes. The kubelet and programs of upstream's use ports from 10248 on.
	FirstGatewayPort, LastGatewayPort = 10060, 10247
)

// IsGatewayPort reports whether a port is in the range for Gateways.
func IsGatewayPort(port int) bool { return port >= FirstGatewayPort && port <= LastGatewayPort }

// GatewayPorts returns all ports of the range for Gateways.
func GatewayPorts() []uint16 {
	var out []uint16
	for port := FirstGatewayPort; port <= LastGatewayPort; port++ {
		out = append(out, uint16(port))
	}
	return out
}

// SiteMark returns the mark by which NodeAnnotation names a site beside its port.
func SiteMark(site string) string {
	sum := sha256.Sum256([]byte(site))
	return hex.EncodeToString(sum[:4])
}

const (
	// QUICConnectionIDLength is the length of the proxy's connection IDs, in bytes. Connection IDs that clients choose
	// have at least eight bytes.
	QUICConnectionIDLength = 7
	// QUICMarkLength is the number of bytes of a connection ID that are the mark of the socket.
	QUICMarkLength = 2
)

// QUICMark returns the mark of a UDP socket by its cookie (SO_COOKIE), which duplicates of the socket share. The kernel
// uses the mark to give a packet to the process that has the connection.
func QUICMark(cookie uint64) uint16 { return uint16(cookie) }

// NodeAnnotation is the annotation of a node with the ports of its addresses at which its proxy serves. For the ports
// of the ingress Service it has the names of these ports: "http=30080,https=30443". For the sites of Gateways it has
// their SiteMark: "10060=0a1b2c3d". BusyEntry names a port that another program of the machine uses:
// "http=30080,https=30443,busy=80". A node that serves nothing has no such annotation.
const NodeAnnotation = "coracle.dev/ingress"

// BusyEntry is the name of the entries of NodeAnnotation for ports that other programs use.
const BusyEntry = "busy"

// Service is the name of the Service of all Ingresses, in kube-system. It exists while there are Ingresses.
const Service = "ingress"

// GatewayLabel is the label of the Services of Gateways.
const GatewayLabel = "coracle.dev/gateway"

const (
	// HTTPPort and HTTPSPort are the ports of Service.
	HTTPPort, HTTPSPort = 80, 443
	// NodeHTTPPort and NodeHTTPSPort are the ports on nodes' addresses at which their proxies listen. No other program
	// uses them; they are next to the cluster DNS' port. HTTP/3 has the UDP port NodeHTTPSPort.
	NodeHTTPPort, NodeHTTPSPort = 10054, 10055
)
