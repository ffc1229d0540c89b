// SPDX-License-Identifier: Apache-2.0

package table

import (
	"crypto/sha256"
	"encoding/hex"
	"syscall"
)

// Path is where an API server has the stream of the table.
const Path = "/coracle/ingress"

// Response is what the proxy says, one line of JSON, after each Commit.
type Response struct {
	// Problems are what a section lacks, for people, by its key. The sections named are served as far as they can be.
	Problems map[string]string `json:"problems,omitempty"`
	// Sockets, in the answer to Change.Sockets, names the listening sockets whose descriptors come with the line
	// (SCM_RIGHTS), in this order. A proxy that has begun to drain has none left.
	Sockets []string `json:"sockets,omitempty"`
	// Stats are the proxy's counters, in the answer to Change.Stats.
	Stats *Stats `json:"stats,omitempty"`
	// PID is the proxy's number, in the answer to Change.Sockets.
	PID int `json:"pid,omitempty"`
}

// HandedOver is the signal that tells a proxy that another one serves on its sockets: it accepts nothing more, and what
// it has may go on for longer than after SIGTERM, which may still follow.
const HandedOver = syscall.SIGUSR2

// What the agent hands to the proxy when it starts it.
const (
	// ControlName is the name of the descriptor of the Unix socket on which the proxy listens for its agent, in
	// EnvNames.
	ControlName = "control"
	// EnvNames is the environment variable with the names of the listening sockets, from descriptor 3 on, with commas
	// between them. Apart from ControlName a name is that of a site, a slash, and HTTP or HTTPS: "ingress/http",
	// "ingress/https", "shop:web:80/http".
	EnvNames = "CORACLE_INGRESS_SOCKETS"
	// EnvUser is the environment variable with the number of the user and the group that the proxy becomes before it
	// reads anything; it is started as root, since its program lies in a folder of root's. Without it the proxy stays
	// who it is.
	EnvUser = "CORACLE_INGRESS_USER"
	// HTTP and HTTPS are the kinds of listeners, and QUIC that of a UDP socket for HTTP/3.
	HTTP, HTTPS, QUIC = "http", "https", "http3"
)

const (
	// FirstGatewayPort and LastGatewayPort bound the ports of nodes' addresses at which their proxies listen for
	// Gateways. The kubelet and programs of upstream's have ports from 10248 on.
	FirstGatewayPort, LastGatewayPort = 10060, 10247
)

// IsGatewayPort says whether a port of nodes' addresses is one for Gateways.
func IsGatewayPort(port int) bool { return port >= FirstGatewayPort && port <= LastGatewayPort }

// GatewayPorts are all of them.
func GatewayPorts() []uint16 {
	var out []uint16
	for port := FirstGatewayPort; port <= LastGatewayPort; port++ {
		out = append(out, uint16(port))
	}
	return out
}

// SiteMark is how a node names a site beside its port, in NodeAnnotation.
func SiteMark(site string) string {
	sum := sha256.Sum256([]byte(site))
	return hex.EncodeToString(sum[:4])
}

const (
	// QUICConnectionIDLength is the length of the proxy's connection IDs, in bytes. Those that clients make up have
	// eight at least.
	QUICConnectionIDLength = 7
	// QUICMarkLength is how many bytes of each are the mark of the socket.
	QUICMarkLength = 2
)

// QUICMark is the mark of a UDP socket by its cookie (SO_COOKIE), which duplicates share: by it the kernel gives a
// packet to the process that has the connection.
func QUICMark(cookie uint64) uint16 { return uint16(cookie) }

// NodeAnnotation is where a node says at which ports of its addresses its proxy takes what comes to the ports of the
// ingress Service: "http=30080,https=30443", with the names of the Service's ports; and at which ports it serves which
// sites of Gateways, by their SiteMark: "10060=0a1b2c3d". BusyEntry with a port says that another program of the
// machine keeps that one: "http=30080,https=30443,busy=80". A node that serves nothing has none.
const NodeAnnotation = "coracle.dev/ingress"

// BusyEntry is the name of the entries of NodeAnnotation for ports that other programs keep.
const BusyEntry = "busy"

// Service is the Service of all Ingresses, in kube-system. It exists while there are any.
const Service = "ingress"

// GatewayLabel is the label of the Services of Gateways.
const GatewayLabel = "coracle.dev/gateway"

const (
	// HTTPPort and HTTPSPort are the ports of Service.
	HTTPPort, HTTPSPort = 80, 443
	// NodeHTTPPort and NodeHTTPSPort are those of nodes' addresses at which their proxies listen, where nothing else
	// does: beside the cluster DNS'. HTTP/3 has NodeHTTPSPort of UDP.
	NodeHTTPPort, NodeHTTPSPort = 10054, 10055
)
