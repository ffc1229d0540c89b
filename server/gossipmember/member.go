// SPDX-License-Identifier: Apache-2.0

// Package gossipmember makes a server a member of the gossip, and keeps its gossip keys equal to those in the API.
package gossipmember

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// GossipSecret, in kube-system, contains the cluster's gossip keys. Files are copies of it. No node's credentials
	// can read it.
	GossipSecret = "gossip-keys.coracle"
	gossipData   = "keys.json"
	// KeysFile and MembersFile are in the server's folder.
	KeysFile    = "gossip-keys.json"
	MembersFile = "members.json"
	// keysRetry is the pause before the keys are read again. At a first start their namespace is created a moment after
	// the API server is ready.
	keysRetry = time.Second
)

// Options are the parameters of New. The functions are called while the member runs.
type Options struct {
	// Dir is the server's folder. Name is the node's name. Version is the version of this program.
	Dir, Name, Version string
	// Level is the level at which this process runs.
	Level int
	// Listen is the address of the API server's TCP port. The gossip uses the UDP port with the same number. Streams
	// returns the gossip's connections at the TCP port. Address is the address at which other machines reach both.
	Listen  string
	Streams net.Listener
	Address string
	NodeIPs []net.IP
	// Join are the addresses of servers that were configured on this one.
	Join []string
	// Links returns the machine's interfaces that lead to other machines. Nil means none.
	Links func() ([]net.Interface, error)
	// Reach, when set, receives from gossip the reports that a node may not be reachable from this machine.
	Reach *reachability.Watch

	// Suspect is called for a member that may be dead.
	Suspect func(node string)
	// Refuses, if set, returns why a node's certificate is refused, or nil.
	Refuses func(*x509.Certificate) error
	Now     func() time.Time

	Part   *status.Part // may be nil
	Logger *slog.Logger
}

// Member makes this server a member of the gossip as soon as there is a key.
type Member struct {
	o       Options
	packets net.PacketConn

	mu       sync.Mutex
	keys     clusterconfig.GossipKeys
	haveKeys chan struct{} // closed when there are keys
	member   atomic.Pointer[gossip.Member]
	// changed is closed when member is set.
	changed chan struct{}
}

// New opens the UDP port with the number of the TCP port.
func New(ctx context.Context, o Options) (*Member, error) {
	packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("the cluster's UDP port, which has the number of the API server's, cannot be opened: %w. Nothing was "+
			"changed: stop what "+
			"uses it, or choose another port with --https-listen-port", err)
	}
	return &Member{o: o, packets: packets, haveKeys: make(chan struct{}), changed: make(chan struct{})}, nil
}

// Close closes the sockets of a Member that is not run.
func (m *Member) Close() error {
	if m == nil {
		return nil
	}
	return ignoreClosed(errors.Join(ignoreClosed(m.packets.Close()), ignoreClosed(m.o.Streams.Close())))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Roster is what the member needs of the server's record of machines.
type Roster interface {
	// StoreAddresses returns the addresses of other servers' stores. Leaderless says that there are other servers and
	// this one has no leader.
	StoreAddresses() []netip.AddrPort
	Leaderless() bool
	// MaxGossipMembers returns how many live members there can be, 0 for unknown.
	MaxGossipMembers() int
}

// Run takes part in the gossip until ctx is done.
func (m *Member) Run(ctx context.Context, p *pki.PKI, r Roster) {
	m.o.Part.Set(status.Starting, "waiting for the gossip key")
	keys, ok, err := gossip.ReadKeys(filepath.Join(m.o.Dir, KeysFile))
	if err != nil {
		m.o.Logger.Warn("the saved gossip keys cannot be read; fetching them again", "error", err)
	}
	if ok {
		m.useKeys(keys)
	}
	select {
	case <-m.haveKeys:
	case <-ctx.Done():
		_ = m.Close() // nothing was sent
		return
	}
	if err := m.join(ctx, p, r); err != nil {
		m.o.Part.Set(status.Degraded, err.Error()+". Machines find one another through the API only")
		m.o.Logger.Error("this server is no longer a member of the gossip", "error", err)
		return
	}
	m.o.Part.Set(status.Stopped, "")
}

// Trust returns the certificates by which this server recognises other machines, for any protocol between them.
func (m *Member) Trust(p *pki.PKI) gossip.Trust {
	trust := gossip.Trust{
		Own:      p.Serving,
		ServerCA: x509.NewCertPool(), ClientCA: x509.NewCertPool(), Refuses: m.o.Refuses, Now: m.o.Now,
	}
	trust.ServerCA.AppendCertsFromPEM(p.CAPEM(pki.ServerCA))
	trust.ClientCA.AppendCertsFromPEM(p.CAPEM(pki.ClientCA))
	return trust
}

func (m *Member) join(ctx context.Context, p *pki.PKI, r Roster) error {
	trust := m.Trust(p)
	address, err := netip.ParseAddrPort(m.o.Address)
	if err != nil {
		return fmt.Errorf("the address of this server: %w", err)
	}
	meta := gossip.Meta{Role: gossip.RoleServer, API: []netip.AddrPort{address}, Version: m.o.Version,
		Running: uint64(m.o.Level)}
	for _, ip := range m.o.NodeIPs {
		if a, ok := netip.AddrFromSlice(ip); ok {
			meta.Addresses = append(meta.Addresses, a.Unmap())
		}
	}
	m.mu.Lock()
	var watch gossip.Reach
	if m.o.Reach != nil {
		watch = m.o.Reach
	}
	member, err := gossip.New(gossip.Options{
		Name: m.o.Name, Address: address, Packets: m.packets, Streams: gossip.NewStreams(m.o.Streams, trust), Keys: m.keys, Meta: meta,
		File: filepath.Join(m.o.Dir, MembersFile), Ask: r.StoreAddresses,
		Names: m.o.Join, Lost: r.Leaderless, Links: m.o.Links, Most: r.MaxGossipMembers, Suspect: m.o.Suspect, Reach: watch,
		Logger: m.o.Logger,
	})
	if err == nil {
		m.member.Store(member)
		if m.o.Reach != nil {
			m.o.Reach.OnUnreachable(member.ReportUnreachable)
		}
		close(m.changed)
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.o.Part.Set(status.Running, "")
	return member.Run(ctx)
}

// Servers returns the addresses of other servers that the gossip has found.
func (m *Member) Servers() []string {
	member := m.member.Load()
	if member == nil {
		return nil
	}
	out := clusterconfig.Strings(member.Found())
	for _, i := range member.Members() {
		if i.Self || i.State != gossip.Alive || i.Role != gossip.RoleServer {
			continue
		}
		out = append(out, clusterconfig.Strings(i.API)...)
	}
	return out
}

// useKeys uses new keys and writes them to the file.
func (m *Member) useKeys(keys clusterconfig.GossipKeys) {
	m.mu.Lock()
	defer m.mu.Unlock()
	none := len(m.keys.Keys) == 0
	if reflect.DeepEqual(keys, m.keys) {
		return
	}
	m.keys = keys
	if err := WriteKeys(m.o.Dir, keys); err != nil {
		m.o.Logger.Warn("the gossip keys could not be saved; the next start fetches them again", "error", err)
	}
	if none {
		close(m.haveKeys)
	}
	if member := m.member.Load(); member != nil {
		if err := member.SetKeys(keys); err != nil {
			m.o.Logger.Error("the new gossip keys could not be used", "error", err)
		}
	}
}

// WriteKeys writes the keys into a server's folder.
func WriteKeys(serverDir string, keys clusterconfig.GossipKeys) error {
	return gossip.WriteKeys(filepath.Join(serverDir, KeysFile), keys)
}

// Keys returns the gossip keys, nil when there are none yet.
func (m *Member) Keys() *clusterconfig.GossipKeys {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.keys.Keys) == 0 {
		return nil
	}
	keys := m.keys
	return &keys
}

// Follow keeps the keys equal to those in the API until ctx is done. If several servers find no keys, one of them makes
// them.
func (m *Member) Follow(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "gossip"))
	if err != nil {
		return fmt.Errorf("making the client for the gossip keys: %w", err)
	}
	last := ""
	for ctx.Err() == nil {
		err := m.watch(ctx, client)
		if err != nil && ctx.Err() == nil && err.Error() != last && !apierrors.IsNotFound(err) { // or the namespace, at a first start
			last = err.Error()
			m.o.Logger.Warn("the gossip keys cannot be read; retrying", "error", err)
		}
		timers.Sleep(ctx, keysRetry)
	}
	return nil
}

// watch reads the keys and follows their changes until the watch ends. It begins at the revision of a list: the
// Secret's own revision may be compacted already.
func (m *Member) watch(ctx context.Context, client kubernetes.Interface) error {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, GossipSecret).String()}
	found, err := secrets.List(ctx, only)
	if err != nil {
		return err
	}
	if len(found.Items) == 0 {
		switch err := m.publish(ctx, client); {
		case apierrors.IsAlreadyExists(err):
			return nil // another server was faster: the caller reads it after a pause
		case err != nil:
			return err
		}
		return m.watch(ctx, client)
	}
	if err := m.useSecret(&found.Items[0]); err != nil {
		return err
	}
	only.ResourceVersion = found.ResourceVersion
	w, err := secrets.Watch(ctx, only)
	if err != nil {
		return err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		s, ok := event.Object.(*corev1.Secret)
		if !ok || event.Type == "DELETED" {
			return nil // the caller reads it, or makes it again
		}
		if err := m.useSecret(s); err != nil {
			return err
		}
	}
	return nil
}

func (m *Member) useSecret(s *corev1.Secret) error {
	keys, err := keysIn(s)
	if err == nil {
		m.useKeys(keys)
	}
	return err
}

func keysIn(s *corev1.Secret) (clusterconfig.GossipKeys, error) {
	var keys clusterconfig.GossipKeys
	err := json.Unmarshal(s.Data[gossipData], &keys)
	if err == nil {
		err = keys.Validate()
	}
	if err != nil {
		return clusterconfig.GossipKeys{}, fmt.Errorf("the Secret %s/%s does not hold the gossip keys: %w; delete it, and a server "+
			"creates it again", s.Namespace, s.Name, err)
	}
	return keys, nil
}

func putKeys(s *corev1.Secret, keys clusterconfig.GossipKeys) error {
	data, err := json.Marshal(keys)
	if err != nil {
		return fmt.Errorf("encoding the gossip keys: %w", err)
	}
	s.Data = map[string][]byte{gossipData: data}
	return nil
}

// publish creates the Secret, with this server's keys or with new ones.
func (m *Member) publish(ctx context.Context, client kubernetes.Interface) error {
	keys := m.Keys()
	if keys == nil {
		keys = new(clusterconfig.NewGossipKeys())
	}
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret,
		Labels: map[string]string{"app.kubernetes.io/managed-by": "coracle"}}}
	if err := putKeys(s, *keys); err != nil {
		return err
	}
	_, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, s, metav1.CreateOptions{})
	return err
}

// Members returns the machines of the cluster that gossip knows. There are none before this server is a member.
func (m *Member) Members() []gossip.Info {
	if member := m.member.Load(); member != nil {
		return member.Members()
	}
	return nil
}

// SetPodSubnets sends the other members the networks of this node's pods.
func (m *Member) SetPodSubnets(ctx context.Context, subnets []netip.Prefix) {
	select {
	case <-m.changed:
		m.member.Load().Update(func(m *gossip.Meta) { m.PodSubnets = subnets })
	case <-ctx.Done():
	}
}
