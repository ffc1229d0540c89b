// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/secrets"
)

// AgentCredentials makes the credentials of a node on this machine and keeps them fresh while the server runs. A second
// call with other addresses brings the certificate up to date.
func (s *Server) AgentCredentials(nodeName string, nodeIPs []net.IP) (nodecreds.Files, error) {
	f := nodecreds.In(s.o.AgentCredDir)
	if s.o.AgentCredDir == "" {
		return f, errors.New("server.Options.AgentCredDir is required")
	}
	for _, l := range []pki.Leaf{s.pki.Node(f.Dir, nodeName), s.pki.NodeServing(f.Dir, nodeName, nodeIPs), s.pki.Network(f.Dir)} {
		if err := s.pki.Ensure(l); err != nil {
			return f, fmt.Errorf("making the credentials of the node %s: %w", nodeName, err)
		}
	}
	err := f.Publish(nodecreds.Cluster{URL: s.URL(), ServerName: s.serverName(),
		ServerCA: s.pki.CAPEM(pki.ServerCA), ClientCA: s.pki.CAPEM(pki.ClientCA)})
	if err != nil {
		return f, fmt.Errorf("making the credentials of the node %s: %w", nodeName, err)
	}
	return f, nil
}

// everyServer is an address that the certificates of all servers are for, and those of no nodes.
const everyServer = "127.0.0.1"

// URL is where this machine reaches its own API server.
func (s *Server) URL() string {
	host := everyServer
	if s.o.bound() {
		host = s.o.BindAddress.String()
	}
	return "https://" + net.JoinHostPort(host, s.openPort())
}

// serverName is what the certificate has to be for that is shown there: it may be another server's (localfailover).
func (s *Server) serverName() string {
	if s.o.bound() && !s.o.BindAddress.IsLoopback() {
		return everyServer
	}
	return ""
}

func (s *Server) openPort() string {
	port := s.o.Port
	if a, ok := s.listener.Addr().(*net.TCPAddr); ok {
		port = a.Port // another than asked for only in tests, which ask for 0
	}
	return strconv.Itoa(port)
}

// peerAddress is where the other servers reach this one.
func (s *Server) peerAddress() string {
	return net.JoinHostPort(s.o.AdvertiseAddress.String(), s.openPort())
}

// makeCredentials brings everything that is secret into existence: authorities, tokens, certificates, encryption keys
// and the administrator's kubeconfigs.
func (s *Server) makeCredentials(ctx context.Context) error {
	var err error
	s.pki, err = pki.Open(pki.Options{Dir: s.o.TLSDir, Established: s.data.Established, BuildTime: s.o.BuildTime,
		Clock: s.o.Clock, Logger: s.log})
	if err != nil {
		return err
	}
	s.files.encryption, err = encryption.Ensure(ctx, encryption.Options{
		Dir: s.o.CredDir, Resources: s.o.EncryptResources, Established: s.data.Established, Logger: s.log})
	if err != nil {
		return err
	}
	s.tokens, err = secrets.NewTokens(secrets.TokenOptions{
		Folders: s.o.folders(), ServerID: s.data.ServerID(), Root: s.pki.Root(),
		Server: s.o.Token, Agent: s.o.AgentToken, Clock: s.o.Clock, Logger: s.log,
	})
	if err != nil {
		return err
	}
	ips, err := s.o.servingIPs()
	if err != nil {
		return err
	}
	admin := s.pki.Admin()
	admin.Use = s.writeKubeconfigs
	s.peers, err = peertls.New(peertls.Options{CA: s.pki.CAPEM(pki.PeerCA), Name: pki.PeerName, Now: s.o.Clock.Now})
	if err != nil {
		return err
	}
	peer := s.pki.Peer(s.data.ServerID())
	peer.Use = s.peers.Use
	s.files.serving, s.files.kubelet, s.files.proxy = s.servingLeaf(ips), s.pki.KubeletClient(), s.pki.FrontProxy()
	s.admission = s.newAdmission()
	withVIPs := s.servingLeaf(append(ips, s.vips.IPs()...))
	for _, l := range []pki.Leaf{withVIPs, s.files.kubelet, s.files.proxy, peer, admin} {
		if err := s.pki.Ensure(l); err != nil {
			return err
		}
	}
	return nil
}

// servingLeaf is the API server's certificate for these addresses.
func (s *Server) servingLeaf(ips []net.IP) pki.Leaf {
	return s.pki.APIServer(pki.APIServerNames{NodeName: s.o.NodeName, Domain: s.o.Cluster.Domain, IPs: ips, ExtraSANs: s.o.TLSSANs})
}

// useVIPs brings certificate and kubeconfigs up to date with the cluster's virtual addresses.
func (s *Server) useVIPs() error {
	ips, err := s.o.servingIPs()
	if err != nil {
		return err
	}
	admin := s.pki.Admin()
	admin.Use = s.writeKubeconfigs
	return errors.Join(s.pki.Ensure(s.servingLeaf(append(ips, s.vips.IPs()...))), s.pki.Ensure(admin))
}

func (s *Server) writeKubeconfigs(cert, key []byte) error {
	for _, k := range s.o.Kubeconfigs {
		url, name := s.URL(), s.serverName()
		if ips := s.vips.IPs(); len(ips) > 0 && !k.Local {
			url, name = "https://"+net.JoinHostPort(ips[0].String(), s.openPort()), ""
		}
		e := nodecreds.Embedded{Server: url, ServerName: name, CA: s.pki.CAPEM(pki.ServerCA), Cert: cert, Key: key,
			Path: k.Path, Mode: k.Mode, GID: k.GID}
		if err := e.Write(); err != nil {
			return fmt.Errorf("writing the administrator's kubeconfig (another place: --write-kubeconfig): %w", err)
		}
	}
	return nil
}
