// SPDX-License-Identifier: Apache-2.0

// Package admission admits machines to the cluster: it checks their names and addresses, keeps their registrations, and
// gives them certificates, settings and, to servers, the cluster's secrets. The conversation is joining/server's. A
// server asks for what it is to be given, and keeps it, by Join.
package admission

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/protocol"
	joiningserver "github.com/coracle-k8s/coracle/joining/server"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
)

const (
	minPassword = 16 // characters
	// MaxServers is how many a cluster may have.
	MaxServers = 7
	// reachTimeout bounds the connecting to another server that asks whether it is reached.
	reachTimeout = 3 * time.Second
)

// Options are an admission's facts. The functions are called while it serves.
type Options struct {
	// Listen returns the listener for machines that join. Before it is called they are answered as all programs are.
	Listen func() net.Listener
	PKI    *pki.PKI
	Tokens func() *token.Set
	// Serving is this server's certificate without the virtual addresses. No node has a name or an address of it.
	Serving pki.Leaf
	// Cluster is what all machines agree on, Networks are those of pods and Services.
	Cluster  clusterconfig.Settings
	Networks []netip.Prefix
	// NodeName is the name of this server's own node.
	NodeName string
	// NodePortRange, EncryptResources, Flags and Folders are what a machine that becomes a server gets too.
	NodePortRange    string
	EncryptResources []string
	Flags            map[string]string
	Folders          secrets.Folders

	// Members are the store's. Servers are the addresses of the other servers, and the virtual ones.
	Members func() []raftstore.Member
	Servers func() []netip.Addr
	// GossipKeys are nil until there are some. VirtualIPs are those that the cluster has.
	GossipKeys func() *clusterconfig.GossipKeys
	VirtualIPs func() []netip.Addr
	// Backend is the network back end that a machine is to have, by this server's own and by the cluster's ConfigMap.
	Backend func(own, cluster string) string
	// Dial connects to another server.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Clock  clock.PassiveClock
	Logger *slog.Logger
}

// Admission admits machines to the cluster.
type Admission struct {
	o Options
	// client is nil until the API server serves.
	client atomic.Pointer[kubernetes.Clientset]
}

// New makes an admission. It starts nothing.
func New(o Options) *Admission { return &Admission{o: o} }

// Serve answers machines until the function that it returns is called.
func (a *Admission) Serve(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(a.o.PKI.CAPEM(pki.ClientCA))
	server := joiningserver.New(joiningserver.Options{
		Listener: a.o.Listen(), ClientCA: clients, Tokens: func() token.Set { return *a.o.Tokens() },
		Certificate: a.o.PKI.Serving, Bootstrap: a.bootstrapToken, Admit: a.admit, Now: a.o.Clock.Now, Logger: a.o.Logger,
	})
	go func() {
		defer close(done)
		if err := server.Run(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			a.o.Logger.Error("machines cannot join any more", "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// Begin says that the API server serves.
func (a *Admission) Begin(config *rest.Config) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "joining"))
	if err != nil {
		return fmt.Errorf("making the client for machines that join: %w", err)
	}
	a.client.Store(client)
	return nil
}

// API is a client of the API server, an error until that serves.
func (a *Admission) API() (kubernetes.Interface, error) {
	if c := a.client.Load(); c != nil {
		return c, nil
	}
	return nil, protocol.Refuse(protocol.CodeStarting, "the server is starting; it lets machines in when its API answers")
}

func (a *Admission) bootstrapToken(ctx context.Context, id string) (token.Bootstrap, bool, error) {
	client, err := a.API()
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
func (a *Admission) admit(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	switch {
	case m.Want == protocol.WantGossipKeys:
		return a.gossipKeys(ctx, m)
	case m.Role == token.RoleServer && m.Reach != nil:
		return a.checkReach(ctx, m)
	case m.Role == token.RoleServer:
		return a.admitServer(ctx, m)
	}
	return a.admitNode(ctx, m)
}

// admitNode gives a machine a node's credentials.
func (a *Admission) admitNode(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	client, err := a.API()
	if err != nil {
		return nil, err
	}
	if err := a.checkNode(m.Node, nil); err != nil && !(m.Joined && isName(err)) { // it has the name already
		return nil, err
	}
	if err := a.register(ctx, client, m); err != nil {
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
	p := a.o.PKI
	serving := p.NodeServing("", m.Node.Name, ips)
	// Not for loopback addresses: at one of those people reach the API server.
	serving.DNSNames, serving.IPs = []string{m.Node.Name}, ips
	out := &protocol.Response{ServerCA: p.CAPEM(pki.ServerCA), ClientCA: p.CAPEM(pki.ClientCA), Settings: settings}
	out.Gossip = a.o.GossipKeys()
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
func (a *Admission) settings(ctx context.Context, client kubernetes.Interface) (clusterconfig.Settings, error) {
	s := a.o.Cluster
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.BackendConfigMap, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return s, fmt.Errorf("asking for the network back end: %w", err)
	}
	said := ""
	if err == nil {
		said = m.Data[clusterconfig.BackendData]
	}
	s.NetworkBackend = a.o.Backend(s.NetworkBackend, said)
	return s, nil
}

// checkNode refuses a node that cannot be one. before are the addresses of the server whose place it takes.
func (a *Admission) checkNode(n protocol.Node, before []netip.Addr) error {
	if len(n.Password) < minPassword {
		return protocol.Refuse(protocol.CodeRequest, "the node's password has %d characters, at least %d are wanted", len(n.Password),
			minPassword)
	}
	return a.checkNames(n, before)
}

// checkNames refuses names and addresses with which a node's certificate would pass for something else.
func (a *Admission) checkNames(n protocol.Node, before []netip.Addr) error {
	if p := validation.IsDNS1123Subdomain(n.Name); len(p) > 0 || len(n.Name) > validation.LabelValueMaxLength {
		return protocol.Refuse(protocol.CodeName, "%q cannot be a node's name; choose another with --node-name", n.Name)
	}
	if (&x509.Certificate{DNSNames: a.o.Serving.DNSNames}).VerifyHostname(n.Name) == nil {
		return protocol.Refuse(protocol.CodeName, "%q is a name of the server's; choose another with --node-name", n.Name)
	}
	if len(n.Addresses) < 1 || len(n.Addresses) > 2 || len(n.Addresses) == 2 && n.Addresses[0].Is4() == n.Addresses[1].Is4() {
		return protocol.Refuse(protocol.CodeAddress, "a node has one address, or one of each family, and not %d; give them with --node-ip",
			len(n.Addresses))
	}
	if len(n.External) > 2 {
		return protocol.Refuse(protocol.CodeAddress, "a node has one external address, or one of each family, and not %d; give them with "+
			"--node-external-ip", len(n.External))
	}
	servers := slices.DeleteFunc(a.o.Servers(), func(ip netip.Addr) bool { return slices.Contains(before, ip) })
	for _, ip := range slices.Concat(n.Addresses, n.External) {
		taken := slices.Contains(servers, ip) || slices.ContainsFunc(a.o.Serving.IPs,
			func(own net.IP) bool { return own.Equal(ip.AsSlice()) })
		inside := slices.ContainsFunc(a.o.Networks, func(c netip.Prefix) bool { return c.Contains(ip) })
		switch {
		// An IPv4 address in the form of an IPv6 one would be compared with nothing.
		case !ip.IsGlobalUnicast() || ip.Is4In6() || ip.Zone() != "":
			return protocol.Refuse(protocol.CodeAddress, "%s cannot be a node's address: other machines could not reach it; give another "+
				"with --node-ip", ip)
		case taken:
			return protocol.Refuse(protocol.CodeAddress, "%s is the address of a server; give this machine's with --node-ip", ip)
		case inside:
			return protocol.Refuse(protocol.CodeAddress, "%s lies in the cluster's network for pods or Services; give the machine's own "+
				"address with --node-ip", ip)
		}
	}
	return nil
}

// gossipKeys gives a node that has joined the keys alone.
func (a *Admission) gossipKeys(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	client, err := a.API()
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
	keys := a.o.GossipKeys()
	if keys == nil {
		return nil, protocol.Refuse(protocol.CodeStarting, "the server has no gossip keys yet")
	}
	return &protocol.Response{ServerCA: a.o.PKI.CAPEM(pki.ServerCA), ClientCA: a.o.PKI.CAPEM(pki.ClientCA), Gossip: keys}, nil
}

// checkReach connects to a server at the address that it gives to the others, and says in words if that does not lead
// to it. Only who has shown the server token gets an answer.
func (a *Admission) checkReach(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	c, err := a.o.Dial(ctx, m.Reach.Address)
	if err != nil {
		return nil, protocol.Refuse(protocol.CodeAddress, "%v", err)
	}
	defer func() { _ = c.Close() }() // nothing was to be said
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, fmt.Errorf("a connection to a server is a %T", c)
	}
	if id := t.ConnectionState().PeerCertificates[0].Subject.CommonName; id != m.Reach.ServerID {
		return nil, protocol.Refuse(protocol.CodeAddress, "another server answers there (%s)", id)
	}
	// The authority is what the other end compares with that of the connection.
	return &protocol.Response{ServerCA: a.o.PKI.CAPEM(pki.ServerCA)}, nil
}

// noNode is why a machine with a node's certificate and without a Node gets nothing: it has just joined, and its Node
// is still to come, or the Node was deleted.
func (a *Admission) noNode(ctx context.Context, client kubernetes.Interface, name string) error {
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
