// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"net"
	"path/filepath"
)

// APIServerNames are the names and addresses in the API server's serving certificate.
type APIServerNames struct {
	NodeName  string
	Domain    string   // cluster.local
	IPs       []net.IP // advertised and node addresses, first address of each service range
	ExtraSANs []string // --tls-san: names or addresses
}

// APIServer returns the serving certificate of the API server. Serving returns it after Ensure.
func (p *PKI) APIServer(n APIServerNames) Leaf {
	l := Leaf{
		Use:        p.useServing,
		Name:       "API server",
		Path:       filepath.Join(p.dir, ownLeaf[ServerCA]),
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
