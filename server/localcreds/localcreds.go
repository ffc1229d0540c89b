// SPDX-License-Identifier: Apache-2.0

// Package localcreds makes the credentials with which this machine reaches its own API server: those of its node, the
// administrator's kubeconfigs, and the server's certificate.
//
// It owns their files, and updates them with the cluster's virtual addresses. The CAs belong to package pki.
package localcreds

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/server/pki"
)

// EveryServer is an address in the certificates of all servers and of no nodes.
const EveryServer = "127.0.0.1"

// Kubeconfig is an administrator's kubeconfig.
type Kubeconfig struct {
	Path string
	Mode fs.FileMode
	GID  int // the file's group; 0 or less means root's
	// Local means that the kubeconfig names this machine's own server even if the cluster has a virtual address.
	Local bool
}

// Options are the parameters of New.
type Options struct {
	PKI *pki.PKI
	// BindAddress and Port are where the API server listens.
	BindAddress net.IP
	Port        string
	// Names are the names in the API server's certificate. VIPs returns further addresses, the cluster's virtual ones.
	Names pki.APIServerNames
	VIPs  func() []net.IP
	// Kubeconfigs are the administrator's kubeconfig files. NodeDir is the folder of the node's credentials.
	Kubeconfigs []Kubeconfig
	NodeDir     string
}

// Credentials are the credentials of one machine.
type Credentials struct{ o Options }

// New returns Credentials. It does not access the disk.
func New(o Options) *Credentials { return &Credentials{o: o} }

// Bound says whether a server with this bind address listens only there.
func Bound(ip net.IP) bool { return ip != nil && !ip.IsUnspecified() }

// URL returns the URL of this machine's own API server.
func (c *Credentials) URL() string {
	host := EveryServer
	if Bound(c.o.BindAddress) {
		host = c.o.BindAddress.String()
	}
	return "https://" + net.JoinHostPort(host, c.o.Port)
}

// ServerName returns the name that the certificate at URL must contain: it may be another server's certificate
// (localfailover). Empty means URL's host.
func (c *Credentials) ServerName() string {
	if Bound(c.o.BindAddress) && !c.o.BindAddress.IsLoopback() {
		return EveryServer
	}
	return ""
}

// Serving returns the API server's certificate without the virtual addresses.
func (c *Credentials) Serving() pki.Leaf { return c.o.PKI.APIServer(c.o.Names) }

// Ensure updates the API server's certificate and the kubeconfigs, with the virtual addresses.
func (c *Credentials) Ensure() error {
	names := c.o.Names
	names.IPs = slices.Concat(names.IPs, c.o.VIPs())
	admin := c.o.PKI.Admin()
	admin.Use = c.writeKubeconfigs
	return errors.Join(c.o.PKI.Ensure(c.o.PKI.APIServer(names)), c.o.PKI.Ensure(admin))
}

func (c *Credentials) writeKubeconfigs(cert, key []byte) error {
	for _, k := range c.o.Kubeconfigs {
		url, name := c.URL(), c.ServerName()
		if ips := c.o.VIPs(); len(ips) > 0 && !k.Local {
			url, name = "https://"+net.JoinHostPort(ips[0].String(), c.o.Port), ""
		}
		e := nodecreds.Embedded{Server: url, ServerName: name, CA: c.o.PKI.CAPEM(pki.ServerCA), Cert: cert, Key: key,
			Path: k.Path, Mode: k.Mode, GID: k.GID}
		if err := e.Write(); err != nil {
			return fmt.Errorf("writing the administrator's kubeconfig (another place: --write-kubeconfig): %w", err)
		}
	}
	return nil
}

// Node makes the credentials of a node on this machine. A second call with other addresses updates the certificate.
func (c *Credentials) Node(nodeName string, nodeIPs []net.IP) (nodecreds.Files, error) {
	f, p := nodecreds.In(c.o.NodeDir), c.o.PKI
	if c.o.NodeDir == "" {
		return f, errors.New("server.Options.AgentCredDir is required")
	}
	for _, l := range []pki.Leaf{
		p.Node(f.Dir, nodeName).For(nodeName, nodecreds.ServersOwn), p.NodeServing(f.Dir, nodeName, nodeIPs),
		p.Network(f.Dir).For(nodeName, nodecreds.ServersOwn),
	} {
		if err := p.Ensure(l); err != nil {
			return f, fmt.Errorf("making the credentials of the node %s: %w", nodeName, err)
		}
	}
	err := f.Publish(nodecreds.Cluster{URL: c.URL(), ServerName: c.ServerName(),
		ServerCA: p.CAPEM(pki.ServerCA), ClientCA: p.CAPEM(pki.ClientCA)})
	if err != nil {
		return f, fmt.Errorf("making the credentials of the node %s: %w", nodeName, err)
	}
	return f, nil
}
