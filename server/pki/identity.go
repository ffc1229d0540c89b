// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"net"
	"path/filepath"
	"slices"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
)

// These are the users and groups in certificates of client-ca. RBAC gives them their rights: system:masters and
// system:nodes are upstream's, the others get their roles from server/bootstrap.
const (
	// AdminUser is the user of the admin kubeconfig.
	AdminUser  = "system:admin"
	adminGroup = "system:masters"
	// KubeletClientUser is the user as which the API server calls kubelets (logs, exec). It has no other rights.
	KubeletClientUser = "system:coracle:kubelet-client"
	// NetworkUser is the user of a node's pod network, proxy and DNS. It is read-only, and separate from the node's own
	// user, which cannot see other nodes' pods. All nodes have the same user, and each has a certificate that names it.
	NetworkUser  = nodecreds.NetworkUser
	NetworkGroup = "system:coracle:agents"
	nodeUser     = nodecreds.UserPrefix
	nodeGroup    = "system:nodes"
	// FrontProxyUser is the user as which the aggregator calls extension API servers.
	FrontProxyUser = "system:auth-proxy"
	// PeerName is the DNS name in every server's certificate of peer-ca. Servers reach one another at addresses that
	// may change. Which server it is they learn from the store's handshake.
	PeerName = "server.peer.coracle.internal"
)

// ownLeaf names a file with a leaf of each CA. Those of kubelet-ca are in the nodes' folders.
var ownLeaf = map[Signer]string{
	ServerCA: "serving-kube-apiserver.pem", ClientCA: "client-admin.pem", RequestHeaderCA: "client-auth-proxy.pem", PeerCA: "peer.pem",
}

// Controllers and scheduler have no certificates: they call the API server in memory.

// Admin returns the client certificate of the admin kubeconfig.
func (p *PKI) Admin() Leaf {
	return Leaf{Name: "admin", Path: filepath.Join(p.dir, ownLeaf[ClientCA]), Signer: ClientCA,
		CommonName: AdminUser, Organizations: []string{adminGroup}}
}

// KubeletClient returns the API server's client certificate for kubelets.
func (p *PKI) KubeletClient() Leaf {
	return Leaf{Name: "API server to kubelets", Path: filepath.Join(p.dir, "client-kube-apiserver.pem"), Signer: ClientCA,
		CommonName: KubeletClientUser}
}

// FrontProxy returns the aggregator's client certificate for extension API servers.
func (p *PKI) FrontProxy() Leaf {
	return Leaf{Name: "aggregator", Path: filepath.Join(p.dir, ownLeaf[RequestHeaderCA]), Signer: RequestHeaderCA,
		CommonName: FrontProxyUser}
}

// Peer returns a server's certificate for connections with other servers, as client and as server.
func (p *PKI) Peer(serverID string) Leaf {
	return Leaf{Name: "server to servers", Path: filepath.Join(p.dir, ownLeaf[PeerCA]), Signer: PeerCA, CommonName: serverID,
		DNSNames: []string{PeerName}}
}

// Node returns the kubelet's client certificate.
func (p *PKI) Node(dir, name string) Leaf {
	return Leaf{Name: "kubelet of " + name, Path: nodecreds.In(dir).KubeletPair, Signer: ClientCA,
		CommonName: nodeUser + name, Organizations: []string{nodeGroup}}
}

// NodeServing returns the serving certificate of the kubelet's port.
func (p *PKI) NodeServing(dir, name string, ips []net.IP) Leaf {
	return Leaf{Name: "kubelet port of " + name, Path: nodecreds.In(dir).KubeletServing, Signer: KubeletCA,
		CommonName: nodeUser + name, Organizations: []string{nodeGroup}, DNSNames: unique([]string{name, "localhost"}),
		IPs: uniqueIPs(append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, ips...))}
}

// Network returns the client certificate of a node's pod network, proxy and DNS.
func (p *PKI) Network(dir string) Leaf {
	return Leaf{Name: "node network", Path: nodecreds.In(dir).NetworkPair, Signer: ClientCA,
		CommonName: NetworkUser, Organizations: []string{NetworkGroup}}
}

// unique removes repeated names and keeps the order.
func unique(in []string) (out []string) {
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func uniqueIPs(in []net.IP) (out []net.IP) {
	for _, ip := range in {
		if !slices.ContainsFunc(out, ip.Equal) {
			out = append(out, ip)
		}
	}
	return out
}
