// SPDX-License-Identifier: Apache-2.0

// Package localcreds makes the credentials with which this machine reaches its own API server: those of its node, the
// administrator's kubeconfigs, and the certificate that the server shows.
//
// It owns their files and brings them up to date with the cluster's virtual addresses. The authorities are package
// pki's.
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

// EveryServer is an address that the certificates of all servers are for, and those of no nodes.
const EveryServer = "127.0.0.1"

// Kubeconfig is an administrator's kubeconfig.
type Kubeconfig struct {
	Path string
	Mode fs.FileMode
	GID  int // the group it belongs to; 0 or less leaves it root's
	// Local keeps this machine's own server in it where the cluster has a virtual address.
	Local bool
}

// Options are the server's.
type Options struct {
	PKI *pki.PKI
	// BindAddress and Port are where the API server listens.
	BindAddress net.IP
	Port        string
	// Names are those of the API server's certificate; VIPs are further addresses, the cluster's virtual ones.
	Names pki.APIServerNames
	VIPs  func() []net.IP
	// Kubeconfigs are the files in which an administrator finds access, NodeDir is for the node's credentials.
	Kubeconfigs []Kubeconfig
	NodeDir     string
}

// Credentials are those of one machine.
type Credentials struct{ o Options }

// New makes Credentials. It touches nothing.
func New(o Options) *Credentials { return &Credentials{o: o} }

// Bound says that a server with that address to bind to listens there alone.
func Bound(ip net.IP) bool { return ip != nil && !ip.IsUnspecified() }

// URL is where this machine reaches its own API server.
func (c *Credentials) URL() string {
	host := EveryServer
	if Bound(c.o.BindAddress) {
		host = c.o.BindAddress.String()
	}
	return "https://" + net.JoinHostPort(host, c.o.Port)
}

// ServerName is what the certificate has to be for that is shown there: it may be another server's (localfailover).
func (c *Credentials) ServerName() string {
	if Bound(c.o.BindAddress) && !c.o.BindAddress.IsLoopback() {
		return EveryServer
	}
	return ""
}

// Serving is the API server's certificate without the virtual addresses.
func (c *Credentials) Serving() pki.Leaf { return c.o.PKI.APIServer(c.o.Names) }

// Ensure brings the API server's certificate and the kubeconfigs up to date, with the virtual addresses.
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

// Node makes the credentials of a node on this machine. A second call with other addresses brings the certificate up to
// date.
func (c *Credentials) Node(nodeName string, nodeIPs []net.IP) (nodecreds.Files, error) {
	f, p := nodecreds.In(c.o.NodeDir), c.o.PKI
	if c.o.NodeDir == "" {
		return f, errors.New("server.Options.AgentCredDir is required")
	}
	for _, l := range []pki.Leaf{p.Node(f.Dir, nodeName), p.NodeServing(f.Dir, nodeName, nodeIPs), p.Network(f.Dir)} {
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
