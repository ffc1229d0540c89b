// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/server/joining"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	// GossipSecret, in kube-system, has the cluster's gossip keys: what is there counts, and files are copies of it. No
	// node's credentials read it.
	GossipSecret = "gossip-keys.coracle"
	gossipData   = "keys.json"
	// gossipKeysFile and membersFile lie in the server's folder.
	gossipKeysFile = "gossip-keys.json"
	membersFile    = "members.json"
	// keysRetry is how long to wait before the keys are asked for again; at a first start their namespace appears a
	// moment after the API server is ready.
	keysRetry = time.Second
)

// membership makes this server a member of the gossip as soon as there is a key.
type membership struct {
	s       *Server
	packets net.PacketConn
	streams net.Listener
	line    *status.Part

	mu     sync.Mutex
	keys   clusterconfig.GossipKeys
	first  chan struct{} // closed when there are keys
	member atomic.Pointer[gossip.Member]
	// changed is closed when the member is there.
	changed chan struct{}
}

// newMembership takes the UDP port that goes with the TCP port.
func newMembership(ctx context.Context, s *Server) (*membership, error) {
	address := s.listener.Addr().String()
	packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("the cluster's UDP port, which has the number of the API server's, cannot be opened: %w. Nothing was changed: stop what "+
			"uses it, or choose another port with --https-listen-port", err)
	}
	m := &membership{s: s, packets: packets, streams: s.port.Route(gossip.ALPN), first: make(chan struct{}), changed: make(chan struct{})}
	if s.o.Board != nil {
		m.line = s.o.Board.Part("gossip")
	}
	return m, nil
}

// close gives up a membership that is not run.
func (m *membership) close() error {
	if m == nil {
		return nil
	}
	return closed(errors.Join(closed(m.packets.Close()), closed(m.streams.Close())))
}

func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// run is a member until ctx is done.
func (m *membership) run(ctx context.Context) {
	m.line.Set(status.Starting, "no key yet")
	keys, ok, err := gossip.ReadKeys(m.keysFile())
	if err != nil {
		m.s.log.Warn("the gossip keys are fetched anew", "error", err)
	}
	if ok {
		m.use(keys)
	}
	select {
	case <-m.first:
	case <-ctx.Done():
		_ = m.close() // nothing was sent
		return
	}
	if err := m.gossip(ctx); err != nil {
		m.line.Set(status.Degraded, err.Error()+". Machines find one another through the API only")
		m.s.log.Error("this server is no member of the gossip any more", "error", err)
		return
	}
	m.line.Set(status.Stopped, "")
}

func (m *membership) gossip(ctx context.Context) error {
	p := m.s.pki
	trust := gossip.Trust{
		Own:      p.Serving,
		ServerCA: x509.NewCertPool(), ClientCA: x509.NewCertPool(), Now: m.s.o.Clock.Now,
	}
	trust.ServerCA.AppendCertsFromPEM(p.CAPEM(pki.ServerCA))
	trust.ClientCA.AppendCertsFromPEM(p.CAPEM(pki.ClientCA))
	address, err := netip.ParseAddrPort(m.s.peerAddress())
	if err != nil {
		return fmt.Errorf("the address of this server: %w", err)
	}
	meta := gossip.Meta{Role: gossip.RoleServer, API: []netip.AddrPort{address}, Version: m.s.o.Version}
	for _, ip := range m.s.o.NodeIPs {
		if a, ok := netip.AddrFromSlice(ip); ok {
			meta.Addresses = append(meta.Addresses, a.Unmap())
		}
	}
	m.mu.Lock()
	var watch gossip.Reach
	if m.s.o.Reach != nil {
		watch = m.s.o.Reach
	}
	member, err := gossip.New(gossip.Options{
		Name: m.s.o.NodeName, Address: address, Packets: m.packets, Streams: gossip.NewStreams(m.streams, trust), Keys: m.keys, Meta: meta,
		File: filepath.Join(m.s.o.ServerDir, membersFile), Ask: m.s.roster.Stores,
		Names: m.s.o.Join, Lost: m.s.roster.Leaderless, Links: m.s.o.Links, Most: m.s.roster.MostMachines, Suspect: m.s.Suspect, Reach: watch, Logger: m.s.log.With("part", "gossip"),
	})
	if err == nil {
		m.member.Store(member)
		if m.s.o.Reach != nil {
			m.s.o.Reach.SetTell(member.TellUnreachable)
		}
		close(m.changed)
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.line.Set(status.Running, "")
	return member.Run(ctx)
}

// elsewhere are addresses of other servers as machines of the cluster tell them.
func (m *membership) elsewhere() []string {
	member := m.member.Load()
	if member == nil {
		return nil
	}
	var out []string
	for _, a := range member.Found() {
		out = append(out, a.String())
	}
	for _, i := range member.Members() {
		if i.Self || i.State != gossip.Alive || i.Role != gossip.RoleServer {
			continue
		}
		for _, a := range i.API {
			out = append(out, a.String())
		}
	}
	return out
}

// use takes keys over and keeps them.
func (m *membership) use(keys clusterconfig.GossipKeys) {
	m.mu.Lock()
	defer m.mu.Unlock()
	none := len(m.keys.Keys) == 0
	if reflect.DeepEqual(keys, m.keys) {
		return
	}
	m.keys = keys
	if err := gossip.WriteKeys(m.keysFile(), keys); err != nil {
		m.s.log.Warn("the gossip keys could not be kept; they are fetched again at the next start", "error", err)
	}
	if none {
		close(m.first)
	}
	if member := m.member.Load(); member != nil {
		if err := member.SetKeys(keys); err != nil {
			m.s.log.Error("the new gossip keys could not be taken over", "error", err)
		}
	}
}

func (m *membership) keysFile() string { return filepath.Join(m.s.o.ServerDir, gossipKeysFile) }

// known are the keys, nil when there are none yet.
func (m *membership) known() *clusterconfig.GossipKeys {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.keys.Keys) == 0 {
		return nil
	}
	keys := m.keys
	return &keys
}

// follow keeps the keys as they are in the API until ctx is done. Of several servers that find none one makes them.
func (m *membership) follow(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "gossip"))
	if err != nil {
		return fmt.Errorf("making the client for the gossip keys: %w", err)
	}
	last := ""
	for ctx.Err() == nil {
		err := m.watch(ctx, client)
		if err != nil && ctx.Err() == nil && err.Error() != last && !apierrors.IsNotFound(err) { // of the namespace, at a first start
			last = err.Error()
			m.s.log.Warn("the gossip keys cannot be read; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(keysRetry):
		}
	}
	return nil
}

// watch reads the keys and follows them as long as the watch lasts.
func (m *membership) watch(ctx context.Context, client kubernetes.Interface) error {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	s, err := secrets.Get(ctx, GossipSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if s, err = m.publish(ctx, client); apierrors.IsAlreadyExists(err) {
			s, err = secrets.Get(ctx, GossipSecret, metav1.GetOptions{})
		}
	}
	if err != nil {
		return err
	}
	if err := m.take(s); err != nil {
		return err
	}
	w, err := secrets.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, GossipSecret).String(), ResourceVersion: s.ResourceVersion,
	})
	if err != nil {
		return err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		s, ok := event.Object.(*corev1.Secret)
		if !ok || event.Type == "DELETED" {
			return nil // it is read, or made, again
		}
		if err := m.take(s); err != nil {
			return err
		}
	}
	return nil
}

func (m *membership) take(s *corev1.Secret) error {
	keys, err := KeysIn(s)
	if err == nil {
		m.use(keys)
	}
	return err
}

// KeysIn reads the gossip keys in their Secret.
func KeysIn(s *corev1.Secret) (clusterconfig.GossipKeys, error) {
	var keys clusterconfig.GossipKeys
	err := json.Unmarshal(s.Data[gossipData], &keys)
	if err == nil {
		err = keys.Validate()
	}
	if err != nil {
		return clusterconfig.GossipKeys{}, fmt.Errorf("the Secret %s/%s does not hold the gossip keys: %w; delete it, and the servers make it again", s.Namespace, s.Name, err)
	}
	return keys, nil
}

// PutKeys writes them into their Secret.
func PutKeys(s *corev1.Secret, keys clusterconfig.GossipKeys) error {
	data, err := json.Marshal(keys)
	if err != nil {
		return fmt.Errorf("encoding the gossip keys: %w", err)
	}
	s.Data = map[string][]byte{gossipData: data}
	return nil
}

// publish makes the Secret, with the keys that this server has or with new ones.
func (m *membership) publish(ctx context.Context, client kubernetes.Interface) (*corev1.Secret, error) {
	keys := m.known()
	if keys == nil {
		made, err := clusterconfig.NewGossipKeys()
		if err != nil {
			return nil, err
		}
		keys = &made
	}
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret,
		Labels: map[string]string{"app.kubernetes.io/managed-by": "coracle"}}}
	if err := PutKeys(s, *keys); err != nil {
		return nil, err
	}
	return client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, s, metav1.CreateOptions{})
}

// Members are the machines of the cluster as gossip knows them; none before this one is a member.
func (s *Server) Members() []gossip.Info {
	if member := s.membership.member.Load(); member != nil {
		return member.Members()
	}
	return nil
}

// SetPodSubnets tells the other members which pods' addresses this machine's node has.
func (s *Server) SetPodSubnets(ctx context.Context, subnets []netip.Prefix) {
	select {
	case <-s.membership.changed:
		s.membership.member.Load().Update(func(m *gossip.Meta) { m.PodSubnets = subnets })
	case <-ctx.Done():
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
	keys := a.s.membership.known()
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
