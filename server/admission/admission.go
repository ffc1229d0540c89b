// SPDX-License-Identifier: Apache-2.0

// Package admission admits machines to the cluster. It checks their names and addresses, maintains their registrations,
// and gives them certificates and settings. Servers also get the cluster's secrets. The protocol is implemented by
// joining/server.
//
// Its goroutines: the server of machines that join, until stop. joining/server has one for each request, 30 s at most.
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
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
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
	// MaxServers is the largest number of servers in a cluster.
	MaxServers = 7
	// reachTimeout limits the connection to a server that asks whether it can be reached.
	reachTimeout = 3 * time.Second
)

// Options are New's parameters. The functions are called while the Admission serves.
type Options struct {
	// Listen returns the listener for joining machines. Before it is called, their connections go to the port's default
	// route.
	Listen func() net.Listener
	// API returns a client of the API server, or a refusal until that serves.
	API    func() (kubernetes.Interface, error)
	PKI    *pki.PKI
	Tokens func() *token.Set
	// Revoked returns the revoked nodes.
	Revoked func() nodecreds.Revoked
	// Serving is this server's certificate without the virtual addresses. No node may have a name or an address of it.
	Serving pki.Leaf
	// Cluster is the settings in which all machines agree. Networks are the networks of pods and Services.
	Cluster  clusterconfig.Settings
	Networks []netip.Prefix
	// NodeName is the name of this server's own node.
	NodeName string
	// ServerSettings, Flags and Folders are sent to machines that become servers.
	ServerSettings clusterconfig.ServerSettings
	Flags          map[string]string
	Folders        secrets.Folders

	// Members returns the store's members. Servers returns the addresses of the other servers, and the virtual
	// addresses.
	Members func() []raftstore.Member
	Servers func() []netip.Addr
	// GossipKeys returns nil until there are some. VirtualIPs returns the cluster's virtual addresses.
	GossipKeys func() *clusterconfig.GossipKeys
	VirtualIPs func() []netip.Addr
	// Level returns the cluster's level.
	Level func() int
	// Backend returns a machine's network back end, by this server's own and by the cluster's ConfigMap.
	Backend func(own, cluster string) string
	// Dial connects to another server.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Clock  clock.PassiveClock
	Logger *slog.Logger
}

// Admission admits machines to the cluster.
type Admission struct{ o Options }

// New returns an Admission. It starts nothing.
func New(o Options) *Admission { return &Admission{o: o} }

// Serve serves joining machines until stop is called.
func (a *Admission) Serve(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(a.o.PKI.CAPEM(pki.ClientCA))
	server := joiningserver.New(joiningserver.Options{
		Listener: a.o.Listen(), ClientCA: clients, Tokens: func() token.Set { return *a.o.Tokens() }, Revoked: a.o.Revoked,
		Certificate: a.o.PKI.Serving, Bootstrap: a.bootstrapToken, Level: a.o.Level, Admit: a.admit, Now: a.o.Clock.Now, Logger: a.o.Logger,
	})
	go func() {
		defer close(done)
		if err := server.Run(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			a.o.Logger.Error("machines can no longer join by this server", "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (a *Admission) bootstrapToken(ctx context.Context, id string) (token.Bootstrap, bool, error) {
	client, err := a.o.API()
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

// admit returns the files and settings that a machine's role needs.
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

func (a *Admission) admitNode(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	client, err := a.o.API()
	if err != nil {
		return nil, err
	}
	if err := a.checkNode(m.Node, nil); err != nil && !(m.Joined && isName(err)) { // it has that name already
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
	ips := convert.Slice(all, func(ip netip.Addr) net.IP { return ip.AsSlice() })
	p := a.o.PKI
	serving := p.NodeServing("", m.Node.Name, ips)
	// The certificate has no loopback addresses: at these, users reach the API server.
	serving.DNSNames, serving.IPs = []string{m.Node.Name}, ips
	out := &protocol.Response{ServerCA: p.NodesServerCA(), ClientCA: p.CAPEM(pki.ClientCA), Settings: settings}
	out.Gossip = a.o.GossipKeys()
	for _, c := range []struct {
		leaf    pki.Leaf
		request []byte
		to      *[]byte
	}{
		{p.Node("", m.Node.Name).For(m.Node.Name, m.Generation), m.Node.KubeletRequest, &out.Kubelet},
		{serving, m.Node.ServingRequest, &out.Serving},
		{p.Network("").For(m.Node.Name, m.Generation), m.Node.NetworkRequest, &out.Network},
	} {
		if *c.to, err = p.Sign(c.leaf, c.request); err != nil {
			return nil, protocol.Refuse(protocol.CodeRequest, "%v", err)
		}
	}
	return out, nil
}

// settings returns the cluster's settings. They contain the present back end of the pod network, which may have changed
// since this server started, even if the ConfigMap does not contain it any more.
func (a *Admission) settings(ctx context.Context, client kubernetes.Interface) (clusterconfig.Settings, error) {
	s := a.o.Cluster
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.BackendConfigMap, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return s, fmt.Errorf("reading the network back end: %w", err)
	}
	said := ""
	if err == nil {
		said = m.Data[clusterconfig.BackendData]
	}
	s.NetworkBackend = a.o.Backend(s.NetworkBackend, said)
	return s, nil
}

// checkNode returns a refusal for an invalid node. before are the addresses of the server that it replaces.
func (a *Admission) checkNode(n protocol.Node, before []netip.Addr) error {
	if len(n.Password) < minPassword {
		return protocol.Refuse(protocol.CodeRequest, "the node's password has %d characters, at least %d are required", len(n.Password),
			minPassword)
	}
	return a.checkNames(n, before)
}

// checkNames refuses names and addresses with which a node's certificate would be accepted for another purpose.
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
		// An IPv4 address in IPv6 form would not match in comparisons.
		case !ip.IsGlobalUnicast() || ip.Is4In6() || ip.Zone() != "":
			return protocol.Refuse(protocol.CodeAddress, "%s cannot be a node's address: other machines could not reach it; give another "+
				"with --node-ip", ip)
		case taken:
			return protocol.Refuse(protocol.CodeAddress, "%s is the address of a server; give this machine's own with --node-ip", ip)
		case inside:
			return protocol.Refuse(protocol.CodeAddress, "%s lies in the cluster's network for pods or Services; give the machine's own "+
				"address with --node-ip", ip)
		}
	}
	return nil
}

// gossipKeys returns only the gossip keys, to a node that has joined.
func (a *Admission) gossipKeys(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	client, err := a.o.API()
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
		return nil, fmt.Errorf("reading the node: %w", err)
	}
	keys := a.o.GossipKeys()
	if keys == nil {
		return nil, protocol.Refuse(protocol.CodeStarting, "the server has no gossip keys yet")
	}
	return &protocol.Response{ServerCA: a.o.PKI.NodesServerCA(), ClientCA: a.o.PKI.CAPEM(pki.ClientCA), Gossip: keys}, nil
}

// checkReach connects to a server at its advertised address, and refuses with a reason if that does not reach the
// server. Only a server that has proved the server token gets this response.
func (a *Admission) checkReach(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	c, err := a.o.Dial(ctx, m.Reach.Address)
	if err != nil {
		return nil, protocol.Refuse(protocol.CodeAddress, "%v", err)
	}
	defer func() { _ = c.Close() }() // there is nothing to send
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, fmt.Errorf("a connection to a server is a %T", c)
	}
	if id := t.ConnectionState().PeerCertificates[0].Subject.CommonName; id != m.Reach.ServerID {
		return nil, protocol.Refuse(protocol.CodeAddress, "another server answers there (%s)", id)
	}
	// The other server compares this CA with that of the connection.
	return &protocol.Response{ServerCA: a.o.PKI.NodesServerCA()}, nil
}

// noNode returns why a machine with a node's certificate and without a Node gets nothing: either it has just joined,
// and its Node does not exist yet, or the Node was deleted.
func (a *Admission) noNode(ctx context.Context, client kubernetes.Interface, name string) error {
	claim, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, name+roster.RegistrationSuffix, metav1.GetOptions{})
	switch {
	case err == nil && a.fresh(claim):
		return protocol.Refuse(protocol.CodeStarting, "the node %s has joined and is not registered yet", name)
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("reading when the node %s joined: %w", name, err)
	}
	return protocol.Refuse(protocol.CodeCertificate, "the node %s was deleted from the cluster; it can join again with a token", name)
}

func isName(err error) bool {
	var r *protocol.Refusal
	return errors.As(err, &r) && r.Code == protocol.CodeName
}
