// SPDX-License-Identifier: Apache-2.0

// Package roster keeps track of the cluster's servers and nodes, and finds whether a name or an address is taken.
//
// It reads the members of the store, the gossip, the Nodes and the registrations of admitted nodes. It owns the file
// with the other servers' addresses, and the servers' names in the store. It never admits or removes a machine.
package roster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/handle"
)

const (
	// RoleLabel is the label that kubectl shows as a node's role. k3s gives it the same value.
	RoleLabel = "node-role.kubernetes.io/control-plane"
	RoleValue = "true"
)

// Options are New's parameters. All functions may be called at any time.
type Options struct {
	// Dir is the server's folder. ServerID is its ID in the store. Name is the name of its node.
	Dir, ServerID, Name string
	// JoinAddresses are the addresses of servers that were configured on this one.
	JoinAddresses []string
	// Networks are the cluster's networks for pods and Services.
	Networks []netip.Prefix

	Store *handle.Store
	// API returns a client of the API server, or an error until that serves.
	API func() (kubernetes.Interface, error)

	// FailoverAddresses returns the servers that serve this machine while its own store waits, nil while none does.
	FailoverAddresses func() []string
	// Machines returns the members of the gossip.
	Machines func() []gossip.Info
	// VirtualAddresses returns the cluster's virtual addresses. ServingAddresses are the addresses in this server's
	// certificate.
	VirtualAddresses func() []netip.Addr
	ServingAddresses []net.IP

	Clock  clock.PassiveClock
	Logger *slog.Logger
}

// Roster tells a server which machines the cluster has, and with which addresses.
type Roster struct {
	o     Options
	nodes atomic.Pointer[corelisters.NodeLister]
}

// New returns a Roster. It starts nothing.
func New(o Options) *Roster { return &Roster{o: o} }

// FollowNodes sets the lister of Nodes. Its informer is the API server's.
func (r *Roster) FollowNodes(nodes corelisters.NodeLister) { r.nodes.Store(&nodes) }

// KnowsNodes says whether FollowNodes was called.
func (r *Roster) KnowsNodes() bool { return r.nodes.Load() != nil }

// Node returns a Node from the API server's informer, nil if there is none of that name.
func (r *Roster) Node(name string) *corev1.Node {
	lister := r.nodes.Load()
	if lister == nil {
		return nil
	}
	n, _ := (*lister).Get(name) // nil if there is none
	return n
}

// AgentNodes returns the Nodes that are not a server's, from the API server's informer.
func (r *Roster) AgentNodes() (out []status.LevelNode) {
	lister := r.nodes.Load()
	if lister == nil {
		return nil
	}
	nodes, _ := (*lister).List(labels.Everything()) // a cache's lister returns no error
	for _, n := range nodes {
		if !IsServer(n) {
			out = append(out, status.LevelNode{Name: n.Name, Version: n.Status.NodeInfo.KubeletVersion, Lives: Lives(n)})
		}
	}
	return out
}

// MaxGossipMembers returns how many live members the gossip can have, by the number of nodes: some machines are members
// before or after they are nodes. It is 0 until the nodes are known.
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

// OtherAddresses returns the addresses of the other servers, to which this machine's node connects.
func (r *Roster) OtherAddresses() []string {
	members := r.o.Store.ReadyMembers()
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

// LeaderFirstAddresses returns the addresses of the other servers, the leader's first. The leader need not be a member
// that this server knows.
func (r *Roster) LeaderFirstAddresses() []string {
	if list := r.o.FailoverAddresses(); list != nil {
		return list
	}
	var out []string
	if store := r.o.Store.Opened(); store != nil && store.Health().OtherLeader() != "" {
		out = append(out, store.Health().OtherLeader())
	}
	for _, address := range otherAddresses(r.o.Store.Members()) {
		if !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	return out
}

// StoreAddresses returns the addresses of the other servers' stores, and those that were configured for joining.
func (r *Roster) StoreAddresses() []netip.AddrPort {
	return convert.Valid(slices.Concat(r.o.JoinAddresses, otherAddresses(r.o.Store.ReadyMembers())), netip.ParseAddrPort)
}

// Leaderless says whether there are other servers and this one has no leader. The others may have new addresses then.
func (r *Roster) Leaderless() bool {
	if r.o.Store.ReadyMembers() == nil {
		others, err := ReadPeerAddresses(r.o.Dir)
		return err == nil && len(others)+len(r.o.JoinAddresses) > 0
	}
	members := r.o.Store.Members()
	return len(members) > 1 && !slices.ContainsFunc(members, func(m raftstore.Member) bool { return m.Leader })
}

// ServerAddresses returns the addresses of the other servers, and the virtual addresses.
func (r *Roster) ServerAddresses() []netip.Addr {
	out := r.o.VirtualAddresses()
	for _, address := range otherAddresses(r.o.Store.ReadyMembers()) {
		if at, err := netip.ParseAddrPort(address); err == nil {
			out = append(out, at.Addr().Unmap())
		}
	}
	return out
}

// ReservedAddresses returns the addresses that no Service may have: the virtual ones, and those of servers, which need
// not be nodes.
func (r *Roster) ReservedAddresses() []netip.Addr {
	out := r.ServerAddresses()
	for _, ip := range r.o.ServingAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// OwnsAddress says whether an address belongs to nodes, servers, pods or Services.
func (r *Roster) OwnsAddress(nodes corelisters.NodeLister, a netip.Addr) bool {
	if slices.Contains(r.ReservedAddresses(), a) || slices.ContainsFunc(r.o.Networks, func(n netip.Prefix) bool { return n.Contains(a) }) {
		return true
	}
	all, _ := nodes.List(labels.Everything()) // a cache's lister returns no error
	return slices.ContainsFunc(all, func(n *corev1.Node) bool { return HasAddress(n, a) })
}

// CheckNotNodes returns an error for an address that a Node lists. The Node's machine may be off, so that a probe in
// the network does not find it.
func CheckNotNodes(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	if len(addresses) == 0 {
		return nil
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("reading the nodes' addresses: %w", err)
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

// IsServer says whether a node is a server's.
func IsServer(n *corev1.Node) bool { return n.Labels[RoleLabel] == RoleValue }

// Lives says whether a node's kubelet has contact. A live kubelet may report that the node is not ready. For a node
// without contact the controllers set the condition to unknown.
func Lives(n *corev1.Node) bool {
	_, c := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady)
	return c == nil || c.Status != corev1.ConditionUnknown
}

// HasAddress says whether a node has an address.
func HasAddress(n *corev1.Node, ip netip.Addr) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
		have, err := netip.ParseAddr(a.Address)
		return err == nil && have.Unmap() == ip
	})
}

// IsMember says whether a server with this ID in the store is among the members.
func IsMember(all []raftstore.Member, id string) bool {
	return id != "" && slices.ContainsFunc(all, func(m raftstore.Member) bool { return m.Name == id })
}
