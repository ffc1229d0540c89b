// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Peer is another node, with what is needed to reach its pods.
type Peer struct {
	Name string `json:"name"`
	// PodCIDRs are the networks of its pods, IPv4 first.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Underlay are its addresses for packets between nodes, at most one of each family, IPv4 first.
	Underlay []netip.Addr `json:"underlay"`
	// WireGuardKey is the public key of its end of the tunnel. It is empty while it is unknown.
	WireGuardKey string `json:"wireGuardKey,omitempty"`
	// Addresses are all addresses of the Node.
	Addresses []netip.Addr `json:"addresses"`

	created time.Time
}

// equal compares the fields on which the connection to the peer depends.
func (p Peer) equal(q Peer) bool {
	return p.Name == q.Name && p.WireGuardKey == q.WireGuardKey && slices.Equal(p.PodCIDRs, q.PodCIDRs) &&
		slices.Equal(p.Underlay, q.Underlay) && slices.Equal(p.Addresses, q.Addresses)
}

// underlay returns the peer's address of a family.
func (p Peer) underlay(v4 bool) (netip.Addr, bool) { return ofFamily(p.Underlay, v4) }

func ofFamily(addrs []netip.Addr, v4 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}

// WatchPeers delivers all nodes except one, the oldest first, whenever something changes on which the connection to
// their pods depends. Only the latest list waits. Nothing is delivered before all nodes are known: a receiver that
// prunes would take an incomplete list for a complete one. WatchPeers adds a handler to an informer of all nodes, which
// the caller runs. It starts a goroutine that ends when the informer has synced, or with ctx.
func WatchPeers(ctx context.Context, nodes coreinformers.NodeInformer, nodeName string) (<-chan []Peer, error) {
	// capacity 1: only the latest list waits for a slow reader
	w := &peerWatch{nodeName: nodeName, lister: nodes.Lister(), synced: nodes.Informer().HasSynced, updates: make(chan []Peer, 1)}
	if _, err := netinformers.Follow(func(any) { w.deliver() }, netinformers.Source{Informer: nodes.Informer()}); err != nil {
		return nil, fmt.Errorf("watching the other nodes: %w", err)
	}
	// The last node of the first list may arrive before the informer has synced.
	synced := nodes.Informer().HasSyncedChecker().Done()
	go func() {
		select {
		case <-synced:
			w.deliver()
		case <-ctx.Done():
		}
	}()
	return w.updates, nil
}

type peerWatch struct {
	nodeName  string
	lister    corelisters.NodeLister
	synced    func() bool
	updates   chan []Peer
	mu        sync.Mutex
	lastPeers []Peer
	delivered bool
}

func (w *peerWatch) deliver() {
	if !w.synced() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes, err := w.lister.List(labels.Everything())
	if err != nil {
		return // a cache does not fail
	}
	peers := peersOf(nodes, w.nodeName)
	if w.delivered && slices.EqualFunc(peers, w.lastPeers, Peer.equal) {
		return
	}
	w.lastPeers, w.delivered = peers, true
	timers.Replace(w.updates, peers)
}

// peersOf reads the peers from Node objects. It is pure. Nodes without pod networks are left out: they have no pods to
// reach yet. The order is by age, so that a new node cannot take a pod network from an older one.
func peersOf(nodes []*corev1.Node, nodeName string) []Peer {
	peers := []Peer{}
	owners := map[netip.Addr]int{}
	for _, n := range nodes {
		for _, a := range nodeAddresses(n) {
			owners[a]++
		}
	}
	for _, n := range nodes {
		cidrs, err := podCIDRs(n)
		if n.Name == nodeName || err != nil || len(cidrs) == 0 {
			continue
		}
		p := Peer{Name: n.Name, PodCIDRs: cidrs, Addresses: nodeAddresses(n),
			WireGuardKey: n.Annotations[clusterconfig.WireGuardAnnotation], created: n.CreationTimestamp.Time}
		p.Underlay = underlayOf(n, func(a netip.Addr) bool { return owners[a] == 0 || slices.Contains(p.Addresses, a) })
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.Name, b.Name)) })
	return peers
}

// underlayOf returns the addresses of the node's annotation, else its internal ones, else its external ones. An
// annotated address must not be another node's, unless it is this node's as well: the machine may have replaced one
// whose Node still exists.
func underlayOf(n *corev1.Node, may func(netip.Addr) bool) []netip.Addr {
	annotated := slices.DeleteFunc(clusterconfig.ParseAddresses(n.Annotations[clusterconfig.UnderlayAnnotation]),
		func(a netip.Addr) bool { return !may(a) || !isRoutable(a) })
	for _, addrs := range [][]netip.Addr{annotated, nodeAddresses(n, corev1.NodeInternalIP), nodeAddresses(n, corev1.NodeExternalIP)} {
		if out := oneOfEach(addrs); len(out) > 0 {
			return out
		}
	}
	return nil
}

// oneOfEach returns the first address of each family, IPv4 first.
func oneOfEach(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, v4 := range []bool{true, false} {
		if a, ok := ofFamily(addrs, v4); ok {
			out = append(out, a)
		}
	}
	return out
}

// nodeAddresses returns the node's addresses of some types, or of all.
func nodeAddresses(n *corev1.Node, types ...corev1.NodeAddressType) []netip.Addr {
	return slices.DeleteFunc(clusterconfig.NodeAddresses(n, types...), func(a netip.Addr) bool { return !isRoutable(a) })
}

func isRoutable(a netip.Addr) bool {
	return a.IsGlobalUnicast() || a.IsLinkLocalUnicast() && a.Is4()
}
