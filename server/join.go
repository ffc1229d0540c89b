// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/joining"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	minPassword = 16 // characters
)

// admission lets nodes into the cluster.
type admission struct {
	s *Server
	// client is nil until the API server serves.
	client atomic.Pointer[kubernetes.Clientset]
}

// serve answers machines until ctx is done.
func (a *admission) serve(ctx context.Context) error {
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(a.s.pki.CAPEM(pki.ClientCA))
	return joining.New(joining.Options{
		Listener: a.s.port.Route(protocol.Protocol), ClientCA: clients, Tokens: func() token.Set { return *a.s.tokens.Now() },
		Certificate: a.s.pki.Serving,
		Bootstrap:   a.bootstrapToken, Admit: a.admit,
		Now: a.s.o.Clock.Now, Logger: a.s.log.With("part", "joining"),
	}).Run(ctx)
}

// begin says that the API server serves.
func (a *admission) begin(config *rest.Config) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "joining"))
	if err != nil {
		return fmt.Errorf("making the client for machines that join: %w", err)
	}
	a.client.Store(client)
	return nil
}

func (a *admission) api() (*kubernetes.Clientset, error) {
	if c := a.client.Load(); c != nil {
		return c, nil
	}
	return nil, protocol.Refuse(protocol.CodeStarting, "the server is starting; it lets machines in when its API answers")
}

func (a *admission) bootstrapToken(ctx context.Context, id string) (token.Bootstrap, bool, error) {
	client, err := a.api()
	if err != nil {
		return token.Bootstrap{}, false, err
	}
	all, err := token.List(ctx, client)
	if err != nil {
		return token.Bootstrap{}, false, err
	}
	i := slices.IndexFunc(all, func(b token.Bootstrap) bool { return b.ID == id })
	if i < 0 {
		return token.Bootstrap{}, false, nil
	}
	return all[i], true, nil
}

// admit gives a machine what its role needs.
func (a *admission) admit(ctx context.Context, m joining.Machine) (*protocol.Answer, error) {
	switch {
	case m.Want == protocol.WantGossipKeys:
		return a.gossipKeys(ctx, m)
	case m.Role == token.RoleServer && m.Reach != nil:
		return a.tellReach(ctx, m)
	case m.Role == token.RoleServer:
		return a.admitServer(ctx, m)
	}
	return a.admitNode(ctx, m)
}

// admitNode gives a machine a node's credentials.
func (a *admission) admitNode(ctx context.Context, m joining.Machine) (*protocol.Answer, error) {
	client, err := a.api()
	if err != nil {
		return nil, err
	}
	if err := a.checkNode(m.Node, nil); err != nil && !(m.Joined && isName(err)) { // it has the name already
		return nil, err
	}
	if err := a.claimName(ctx, client, m); err != nil {
		return nil, err
	}
	settings, err := a.settings(ctx, client)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(m.Node.Addresses, m.Node.External)
	ips := make([]net.IP, 0, len(all))
	for _, ip := range all {
		ips = append(ips, ip.AsSlice())
	}
	p := a.s.pki
	serving := p.NodeServing("", m.Node.Name, ips)
	// Not for loopback addresses: at one of those people reach the API server.
	serving.DNSNames, serving.IPs = []string{m.Node.Name}, ips
	out := &protocol.Answer{ServerCA: p.CAPEM(pki.ServerCA), ClientCA: p.CAPEM(pki.ClientCA), Settings: settings}
	if !m.Node.Connects { // it is alive for as long as its lease says so
		out.Settings.Liveness = clusterconfig.ByLease
	}
	out.Gossip = a.s.membership.Keys()
	for _, c := range []struct {
		leaf    pki.Leaf
		request []byte
		to      *[]byte
	}{
		{p.Node("", m.Node.Name), m.Node.KubeletRequest, &out.Kubelet},
		{serving, m.Node.ServingRequest, &out.Serving},
		{p.Network(""), m.Node.NetworkRequest, &out.Network},
	} {
		if *c.to, err = p.Sign(c.leaf, c.request); err != nil {
			return nil, protocol.Refuse(protocol.CodeRequest, "%v", err)
		}
	}
	return out, nil
}

// settings are the cluster's, with the back end of the pod network to which it has changed since this server started,
// also where the ConfigMap says nothing of it any more.
func (a *admission) settings(ctx context.Context, client kubernetes.Interface) (clusterconfig.Settings, error) {
	s := a.s.o.Cluster
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.BackendConfigMap, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return s, fmt.Errorf("asking for the network back end: %w", err)
	}
	said := ""
	if err == nil {
		said = m.Data[clusterconfig.BackendData]
	}
	s.NetworkBackend = a.s.backend.ToldTo(s.NetworkBackend, said)
	return s, nil
}

// checkNode refuses a node that cannot be one. before are the addresses of the server whose place it takes.
func (a *admission) checkNode(n protocol.Node, before []netip.Addr) error {
	if len(n.Password) < minPassword {
		return protocol.Refuse(protocol.CodeRequest, "the node's password has %d characters, at least %d are wanted", len(n.Password), minPassword)
	}
	return a.checkNames(n, before)
}

// checkNames refuses names and addresses with which a node's certificate would pass for something else.
func (a *admission) checkNames(n protocol.Node, before []netip.Addr) error {
	if p := validation.IsDNS1123Subdomain(n.Name); len(p) > 0 || len(n.Name) > validation.LabelValueMaxLength {
		return protocol.Refuse(protocol.CodeName, "%q cannot be a node's name; choose another with --node-name", n.Name)
	}
	if (&x509.Certificate{DNSNames: a.s.files.serving.DNSNames}).VerifyHostname(n.Name) == nil {
		return protocol.Refuse(protocol.CodeName, "%q is a name of the server's; choose another with --node-name", n.Name)
	}
	if len(n.Addresses) < 1 || len(n.Addresses) > 2 || len(n.Addresses) == 2 && n.Addresses[0].Is4() == n.Addresses[1].Is4() {
		return protocol.Refuse(protocol.CodeAddress, "a node has one address, or one of each family, and not %d; give them with --node-ip", len(n.Addresses))
	}
	if len(n.External) > 2 {
		return protocol.Refuse(protocol.CodeAddress, "a node has one external address, or one of each family, and not %d; give them with --node-external-ip", len(n.External))
	}
	servers := slices.DeleteFunc(a.s.roster.Servers(), func(ip netip.Addr) bool { return slices.Contains(before, ip) })
	for _, ip := range slices.Concat(n.Addresses, n.External) {
		taken := slices.Contains(servers, ip) || slices.ContainsFunc(a.s.files.serving.IPs, func(own net.IP) bool { return own.Equal(ip.AsSlice()) })
		inside := slices.ContainsFunc(a.s.o.reserved(), func(c netip.Prefix) bool { return c.Contains(ip) })
		switch {
		// An IPv4 address in the form of an IPv6 one would be compared with nothing.
		case !ip.IsGlobalUnicast() || ip.Is4In6() || ip.Zone() != "":
			return protocol.Refuse(protocol.CodeAddress, "%s cannot be a node's address: other machines could not reach it; give another with --node-ip", ip)
		case taken:
			return protocol.Refuse(protocol.CodeAddress, "%s is the address of a server; give this machine's with --node-ip", ip)
		case inside:
			return protocol.Refuse(protocol.CodeAddress, "%s lies in the cluster's network for pods or Services; give the machine's own address with --node-ip", ip)
		}
	}
	return nil
}

// serveJoins lets machines in until the function that it returns is called.
func (s *Server) serveJoins(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.admission.serve(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Error("machines cannot join any more", "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// gossipKeys gives a node that has joined the keys alone.
func (a *admission) gossipKeys(ctx context.Context, m joining.Machine) (*protocol.Answer, error) {
	client, err := a.api()
	if err != nil {
		return nil, err
	}
	if !m.Joined {
		return nil, protocol.Refuse(protocol.CodeCertificate, "the gossip keys are for nodes that have joined")
	}
	_, err = client.CoreV1().Nodes().Get(ctx, m.Node.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, a.noNode(ctx, client, m.Node.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the node: %w", err)
	}
	keys := a.s.membership.Keys()
	if keys == nil {
		return nil, protocol.Refuse(protocol.CodeStarting, "the server has no gossip keys yet")
	}
	return &protocol.Answer{ServerCA: a.s.pki.CAPEM(pki.ServerCA), ClientCA: a.s.pki.CAPEM(pki.ClientCA), Gossip: keys}, nil
}

// noNode is why a machine with a node's certificate and without a Node gets nothing: it has just joined, and its Node
// is still to come, or the Node was deleted.
func (a *admission) noNode(ctx context.Context, client kubernetes.Interface, name string) error {
	claim, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, name+roster.RegistrationSuffix, metav1.GetOptions{})
	switch {
	case err == nil && a.fresh(claim):
		return protocol.Refuse(protocol.CodeStarting, "the node %s has joined and is not registered yet", name)
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("looking when the node %s joined: %w", name, err)
	}
	return protocol.Refuse(protocol.CodeCertificate, "the node %s was deleted from the cluster; it can join again with a token", name)
}

func isName(err error) bool {
	var r *protocol.Refusal
	return errors.As(err, &r) && r.Code == protocol.CodeName
}
