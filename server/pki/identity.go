// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"net"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
)

// Users and groups that certificates of client-ca carry. What each may do is RBAC's matter: system:masters and
// system:nodes are upstream's, the others get their roles from server/bootstrap.
const (
	// AdminUser is who the admin kubeconfig is.
	AdminUser  = "system:admin"
	adminGroup = "system:masters"
	// KubeletClientUser is who the API server is when it calls a kubelet (logs, exec): it may do that and nothing else.
	KubeletClientUser = "system:coracle:kubelet-client"
	// NetworkUser is who the pod network, proxy and DNS of a node are: read-only, and apart from the node's own
	// identity, which cannot see other nodes' pods.
	NetworkUser  = "system:coracle:network"
	NetworkGroup = "system:coracle:agents"
	nodeUser     = "system:node:"
	nodeGroup    = "system:nodes"
	// FrontProxyUser is who the aggregator is towards extension API servers.
	FrontProxyUser = "system:auth-proxy"
	// PeerName is what every server is called by the others, in its certificate of peer-ca. They reach it at addresses
	// that may change, and which of the servers it is they learn from the store's own handshake.
	PeerName = "server.peer.coracle.internal"
)

// Controllers and scheduler have no certificates: they speak to the API server in memory.

// APIServerNames is what the API server's serving certificate must cover.
type APIServerNames struct {
	NodeName  string
	Domain    string   // cluster.local
	IPs       []net.IP // advertised and node addresses, first address of each service range
	ExtraSANs []string // --tls-san: names or addresses
}

// APIServer is the serving certificate of the API server, which Serving returns once it was ensured.
func (p *PKI) APIServer(n APIServerNames) Leaf {
	l := Leaf{
		Use:        p.useServing,
		Name:       "API server",
		Path:       filepath.Join(p.dir, "serving-kube-apiserver.pem"),
		Signer:     ServerCA,
		CommonName: "kube-apiserver",
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + n.Domain},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	add := func(san string) {
		if ip := net.ParseIP(san); ip != nil {
			l.IPs = append(l.IPs, ip)
		} else if san != "" {
			l.DNSNames = append(l.DNSNames, san)
		}
	}
	add(n.NodeName)
	for _, ip := range n.IPs {
		add(ip.String())
	}
	for _, san := range n.ExtraSANs {
		add(san)
	}
	l.DNSNames, l.IPs = unique(l.DNSNames), uniqueIPs(l.IPs)
	return l
}

// Admin is the client certificate of the admin kubeconfig.
func (p *PKI) Admin() Leaf {
	return Leaf{Name: "admin", Path: filepath.Join(p.dir, "client-admin.pem"), Signer: ClientCA,
		CommonName: AdminUser, Organizations: []string{adminGroup}}
}

// KubeletClient is what the API server shows to kubelets.
func (p *PKI) KubeletClient() Leaf {
	return Leaf{Name: "API server to kubelets", Path: filepath.Join(p.dir, "client-kube-apiserver.pem"), Signer: ClientCA,
		CommonName: KubeletClientUser}
}

// FrontProxy is what the aggregator shows to extension API servers.
func (p *PKI) FrontProxy() Leaf {
	return Leaf{Name: "aggregator", Path: filepath.Join(p.dir, "client-auth-proxy.pem"), Signer: RequestHeaderCA,
		CommonName: FrontProxyUser}
}

// Peer is what a server shows to the other servers, whichever of the two dials.
func (p *PKI) Peer(serverID string) Leaf {
	return Leaf{Name: "server to servers", Path: filepath.Join(p.dir, "peer.pem"), Signer: PeerCA, CommonName: serverID,
		DNSNames: []string{PeerName}}
}

// Node is the kubelet's own identity.
func (p *PKI) Node(dir, name string) Leaf {
	return Leaf{Name: "kubelet of " + name, Path: nodecreds.In(dir).KubeletPair, Signer: ClientCA,
		CommonName: nodeUser + name, Organizations: []string{nodeGroup}}
}

// NodeServing is what the kubelet's port shows.
func (p *PKI) NodeServing(dir, name string, ips []net.IP) Leaf {
	return Leaf{Name: "kubelet port of " + name, Path: nodecreds.In(dir).KubeletServing, Signer: KubeletCA,
		CommonName: nodeUser + name, Organizations: []string{nodeGroup}, DNSNames: unique([]string{name, "localhost"}),
		IPs: uniqueIPs(append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, ips...))}
}

// Network is the identity of a node's pod network, proxy and DNS.
func (p *PKI) Network(dir string) Leaf {
	return Leaf{Name: "node network", Path: nodecreds.In(dir).NetworkPair, Signer: ClientCA,
		CommonName: NetworkUser, Organizations: []string{NetworkGroup}}
}

// unique keeps the first of each name and their order.
func unique(in []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range in {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func uniqueIPs(in []net.IP) []net.IP {
	seen := map[string]bool{}
	var out []net.IP
	for _, ip := range in {
		if s := ip.String(); !seen[s] {
			seen[s] = true
			out = append(out, ip)
		}
	}
	return out
}
