// SPDX-License-Identifier: Apache-2.0

// Package roster answers who the cluster's servers and nodes are, and whether a name or an address is taken.
//
// It reads the members of the store, the gossip, the Nodes and the registrations of admitted nodes. It owns the file
// with the other servers' addresses and the servers' names in the store. It never admits or removes anybody.
package roster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// RoleLabel is what kubectl shows as a node's role. k3s gives it the same value.
	RoleLabel = "node-role.kubernetes.io/control-plane"
	RoleValue = "true"
)

// Options are what a roster asks. All functions may be called at any time.
type Options struct {
	// Dir is the server's folder. ServerID is its name in the store, Name that of its node.
	Dir, ServerID, Name string
	// JoinAddresses are those of servers that this one was given.
	JoinAddresses []string
	// Networks are the cluster's own, for pods and Services.
	Networks []netip.Prefix

	// Members are the store's, none until it is open. Answered are the same, none until the store has answered.
	Members, Answered func() []raftstore.Member
	// Leader is the address of the other server that leads, empty for none.
	Leader func() string
	// Survey asks the members how they are. ReachedBy are the servers that reach the ones without an answer.
	Survey    func(context.Context) []raftstore.MemberState
	ReachedBy func(context.Context, []raftstore.MemberState) map[string][]string
	// KV is the store's, nil until it is open.
	KV func() clientv3.KV

	// FailoverAddresses are the servers that serve this machine while its own store waits, nil while none does.
	FailoverAddresses func() []string
	// Machines are the members of the gossip.
	Machines func() []gossip.Info
	// VirtualAddresses are the cluster's virtual ones. ServingAddresses are those that this server's certificate is
	// for.
	VirtualAddresses func() []netip.Addr
	ServingAddresses func() []net.IP
	// API is a client of the API server, an error until that serves.
	API func() (kubernetes.Interface, error)

	Clock  clock.PassiveClock
	Logger *slog.Logger
}

// Roster is a server's knowledge of the cluster's machines.
type Roster struct {
	o     Options
	nodes atomic.Pointer[corelisters.NodeLister]
}

// New makes a roster. It starts nothing.
func New(o Options) *Roster { return &Roster{o: o} }

// FollowNodes gives the roster the Nodes, which the API server's informer keeps.
func (r *Roster) FollowNodes(nodes corelisters.NodeLister) { r.nodes.Store(&nodes) }

// KnowsNodes says whether the Nodes are known.
func (r *Roster) KnowsNodes() bool { return r.nodes.Load() != nil }

// Node is a Node as the API server's informer has it; nil if it has none of that name.
func (r *Roster) Node(name string) *corev1.Node {
	lister := r.nodes.Load()
	if lister == nil {
		return nil
	}
	n, _ := (*lister).Get(name) // nil where there is none
	return n
}

// MaxGossipMembers is how many live members of the gossip there can be, by the number of nodes: some machines are
// members and no nodes yet, or not any more. It is 0 until the nodes are known.
func (r *Roster) MaxGossipMembers() int {
	lister := r.nodes.Load()
	if lister == nil {
		return 0
	}
	nodes, err := (*lister).List(labels.Everything())
	if err != nil || len(nodes) == 0 {
		return 0
	}
	return 2*len(nodes) + 64
}

// OtherAddresses are those of the other servers, which this machine's node connects to.
func (r *Roster) OtherAddresses() []string {
	members := r.o.Answered()
	if members == nil {
		return r.o.FailoverAddresses()
	}
	return otherAddresses(members)
}

func otherAddresses(members []raftstore.Member) []string {
	var out []string
	for _, m := range members {
		if !m.Self {
			out = append(out, m.Address)
		}
	}
	return out
}

// LeaderFirstAddresses are those of the other servers, the leader's before the others. The leader need not be a
// member that this server knows.
func (r *Roster) LeaderFirstAddresses() []string {
	if list := r.o.FailoverAddresses(); list != nil {
		return list
	}
	var out []string
	if leader := r.o.Leader(); leader != "" {
		out = append(out, leader)
	}
	for _, address := range otherAddresses(r.o.Members()) {
		if !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	return out
}

// StoreAddresses are where the other servers' stores are, and those that this server was given to join.
func (r *Roster) StoreAddresses() []netip.AddrPort {
	var out []netip.AddrPort
	for _, t := range slices.Concat(r.o.JoinAddresses, otherAddresses(r.o.Answered())) {
		if a, err := netip.ParseAddrPort(t); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// Leaderless says that there are other servers, and this one has no leader. The others may have other addresses by now.
func (r *Roster) Leaderless() bool {
	if r.o.Answered() == nil {
		others, err := ReadPeerAddresses(r.o.Dir)
		return err == nil && len(others)+len(r.o.JoinAddresses) > 0
	}
	members := r.o.Members()
	return len(members) > 1 && !slices.ContainsFunc(members, func(m raftstore.Member) bool { return m.Leader })
}

// ServerAddresses are those of the other servers, and the virtual ones.
func (r *Roster) ServerAddresses() []netip.Addr {
	out := r.o.VirtualAddresses()
	for _, address := range otherAddresses(r.o.Answered()) {
		if at, err := netip.ParseAddrPort(address); err == nil {
			out = append(out, at.Addr().Unmap())
		}
	}
	return out
}

// ReservedAddresses are those that no Service gets: the virtual ones, and those of servers, which need not be nodes.
func (r *Roster) ReservedAddresses() []netip.Addr {
	out := r.ServerAddresses()
	for _, ip := range r.o.ServingAddresses() {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// OwnsAddress says whether an address is one of nodes, servers, pods or Services.
func (r *Roster) OwnsAddress(nodes corelisters.NodeLister, a netip.Addr) bool {
	if slices.Contains(r.ReservedAddresses(), a) || slices.ContainsFunc(r.o.Networks, func(n netip.Prefix) bool { return n.Contains(a) }) {
		return true
	}
	all, _ := nodes.List(labels.Everything()) // of a cache: it cannot fail
	return slices.ContainsFunc(all, func(n *corev1.Node) bool { return HasAddress(n, a) })
}

// CheckFree refuses addresses that a Node or a member of the gossip has.
func (r *Roster) CheckFree(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	if err := CheckNotNodes(ctx, client, addresses); err != nil {
		return err
	}
	for _, m := range r.o.Machines() {
		if slices.Contains(addresses, m.Address.Addr().Unmap()) {
			return fmt.Errorf("%s is the address of the machine %s of this cluster. Choose an address that no machine has",
				m.Address.Addr().Unmap(), m.Name)
		}
	}
	return nil
}

// CheckNotNodes refuses addresses that a Node says are its own: its machine may be off, so that the network does not
// know it.
func CheckNotNodes(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	if len(addresses) == 0 {
		return nil
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("asking for the nodes' addresses: %w", err)
	}
	for i := range nodes.Items {
		for _, a := range clusterconfig.NodeAddresses(&nodes.Items[i], corev1.NodeInternalIP) {
			if slices.Contains(addresses, a) {
				return fmt.Errorf("%s is the address of the node %s. Choose an address that no machine has", a, nodes.Items[i].Name)
			}
		}
	}
	return nil
}

// MachineAt is the name of the member of the gossip with this address, empty for none.
func (r *Roster) MachineAt(address string) string {
	for _, m := range r.o.Machines() {
		if m.Address.String() == address {
			return m.Name
		}
	}
	return ""
}

// IsServer says whether a node is a server's.
func IsServer(n *corev1.Node) bool { return n.Labels[RoleLabel] == RoleValue }

// Lives says whether a node's kubelet is heard of. It may say that the node is not ready; of one that is silent the
// controllers say that they do not know.
func Lives(n *corev1.Node) bool {
	_, c := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady)
	return c == nil || c.Status != corev1.ConditionUnknown
}

// HasAddress says whether an address is one of a node's.
func HasAddress(n *corev1.Node, ip netip.Addr) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
		have, err := netip.ParseAddr(a.Address)
		return err == nil && have.Unmap() == ip
	})
}

// IsMember says whether a server with this name in the store is among the members.
func IsMember(all []raftstore.Member, id string) bool {
	return id != "" && slices.ContainsFunc(all, func(m raftstore.Member) bool { return m.Name == id })
}
