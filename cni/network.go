// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// network has everything that a pod's attachment and the host's side depend on: properties of this node and of the
// other nodes. It is never changed, only replaced.
type network struct {
	podCIDRs []netip.Prefix
	sizes
	paths pathInput
	// backend connects this node to other nodes. name is its name.
	backend backend
	name    string
}

func (nw *network) equal(old *network) bool {
	return old != nil && slices.Equal(nw.podCIDRs, old.podCIDRs) && nw.sizes == old.sizes && nw.paths.equal(old.paths) &&
		nw.name == old.name
}

// networkFile stores the nodes' pod networks, so that a restart can serve pods without the API.
const networkFile = "network.json"

// networkState is what this node last read from the API: its pod CIDRs, the other nodes, and the cluster's back end.
type networkState struct {
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Peers    []Peer         `json:"peers,omitempty"`
	// Backend is empty where the cluster has no such setting.
	Backend string `json:"backend,omitempty"`
}

func (st networkState) equal(other networkState) bool {
	return slices.Equal(st.PodCIDRs, other.PodCIDRs) && slices.EqualFunc(st.Peers, other.Peers, Peer.equal) && st.Backend == other.Backend
}

// configureRetry is the wait after a failed attempt to set up the node's network.
const configureRetry = 2 * time.Second

// configureLoop sets up the node's network for the last known state of the nodes, and again after each change: of this
// node's pod CIDRs, of the other nodes, and of the kernel.
func (pn *podNetwork) configureLoop(ctx context.Context, changes <-chan struct{}) {
	st := pn.loadState()
	if len(st.PodCIDRs) == 0 {
		// An earlier run's CNI configuration would declare that pods can be served, which is not so yet.
		if err := removeConflist(pn.o.ConfDir); err != nil {
			pn.log.Error(err, "A stale CNI configuration stays; pods fail to start until the network is ready, and are tried again")
		}
		pn.log.Info("Pods wait for the node's pod CIDR")
	}
	guard, poll := time.NewTicker(pn.guardPeriod), time.NewTicker(pollPeriod)
	defer guard.Stop()
	defer poll.Stop()
	polls := true // only for WireGuard
	podCIDRs, peers, backends := pn.o.PodCIDRs, pn.o.Peers, pn.o.Backends
	for {
		var retry <-chan time.Time
		if len(st.PodCIDRs) > 0 {
			err := pn.configure(ctx, st)
			if ctx.Err() != nil {
				return
			}
			pn.reportSetup(err)
			if err != nil {
				pn.log.Error(err, "The pod network could not be set up; running pods are not touched, trying again", "after", configureRetry)
				retry = time.After(configureRetry)
			}
		}
		if encrypts := pn.triedNetwork != nil && pn.triedNetwork.name == clusterconfig.NetworkWireGuard; polls != encrypts {
			if polls = encrypts; polls {
				poll.Reset(pollPeriod)
			} else {
				poll.Stop()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-changes:
			pn.heal(ctx, false)
		case <-poll.C:
			if pn.wg.changed() {
				pn.heal(ctx, false)
			}
		case <-guard.C:
			pn.heal(ctx, true)
			pn.warnOfFirewalls()
		case next, ok := <-podCIDRs:
			if !ok {
				podCIDRs = nil
			}
			if len(next) > 0 { // the Node may lose them; the last ones still work
				st.PodCIDRs = next
			}
		case next, ok := <-peers:
			if !ok {
				peers = nil
				continue
			}
			st.Peers = next
		case next, ok := <-backends:
			if !ok {
				backends = nil
				continue
			}
			st.Backend = pn.backendFor(next, st.Backend)
		}
	}
}

// configure makes the host ready for pods. Pods are served from then on. It is idempotent, and does nothing when
// nothing has changed.
func (pn *podNetwork) configure(ctx context.Context, st networkState) error {
	for _, c := range st.PodCIDRs {
		if c.Bits() > c.Addr().BitLen()-2 {
			return fmt.Errorf("the node's pod CIDR %s is too small to allocate from", c)
		}
	}
	nw, unreachable, err := pn.desiredNetwork(st)
	if err != nil {
		return err
	}
	pn.reportPeers(unreachable)
	old := pn.network.Load()
	if nw.equal(old) && nw.equal(pn.triedNetwork) {
		return nil
	}
	if err := pn.saveState(st); err != nil {
		return err
	}
	if old == nil || !slices.Equal(old.podCIDRs, nw.podCIDRs) {
		if err := pn.removeLeftovers(); err != nil {
			return err
		}
	}
	pn.triedNetwork = nw
	if _, err := pn.applyHost(nw); err != nil {
		return err
	}
	pn.rules.network.Store(nw)
	if err := pn.applyRules(ctx); err != nil {
		return err
	}
	pn.attaching.Lock() // a pod that is being attached is listed before that, or uses the new network
	pn.network.Store(nw)
	pn.attaching.Unlock()
	if old == nil || old.sizes != nw.sizes {
		pn.resizePods(nw)
	}
	if nw.name != clusterconfig.NetworkWireGuard {
		pn.wg.close() // ends wireguard-go, whose device has been removed
	}
	if old == nil || old.name != nw.name {
		pn.reportedFirewalls = "" // its port differs, so warnOfFirewalls has to log again
		pn.warnOfHostPorts(nw)
		if pn.o.Changed != nil {
			pn.o.Changed()
		}
	}
	if err := pn.writeConflist(); err != nil {
		return err
	}
	pn.warnOfFirewalls()
	pn.log.Info("The pod network is ready", "podCIDRs", nw.podCIDRs, "mtu", nw.mtu, "device", Bridge,
		"backend", nw.name, "underlay", nw.paths.underlay.device, "otherNodes", len(nw.paths.peers))
	return nil
}

// backendFor returns the back end to use when the cluster's setting is next and was have before. An unknown back end,
// or that of another plugin, changes nothing. Neither does a setting that was removed: nodes may have been started with
// different back ends.
func (pn *podNetwork) backendFor(next, have string) string {
	reason := ""
	switch {
	case next == clusterconfig.NetworkNone:
		reason = "the cluster leaves the pod network to another plugin now (none); this node does so when coracle is restarted on it. " +
			"If that was written by hand, restart coracle on a server: it writes what the cluster had"
		next = have
	case next != "" && !slices.Contains(clusterconfig.RunningBackends(), next):
		reason = fmt.Sprintf("the ConfigMap %s/%s says that the network back end is %q, to which no running node changes; this one "+
			"stays with %q. Write it with: coracle network-backend set NAME",
			metav1.NamespaceSystem, clusterconfig.BackendConfigMap, next, cmp.Or(have, pn.o.Backend))
		next = have
	}
	pn.reportBackend(reason)
	return cmp.Or(next, have)
}

// desiredNetwork computes the network from the nodes and the underlay's current state. If the underlay cannot be found
// it uses the last one: the underlay's address may return, and pods of this node do not need it.
func (pn *podNetwork) desiredNetwork(st networkState) (*network, []unreachablePeer, error) {
	nw := &network{podCIDRs: st.PodCIDRs, name: cmp.Or(st.Backend, pn.o.Backend)}
	nw.paths.podCIDRs, nw.paths.external = st.PodCIDRs, pn.o.External
	var unreachable []unreachablePeer
	var err error
	if nw.backend, err = pn.newBackend(nw.name); err != nil {
		return nil, nil, err
	}
	nw.paths.peers, unreachable = acceptablePeers(st.Peers, st.PodCIDRs, pn.o.ClusterCIDRs)
	u, err := findUnderlay(pn.o.NodeIPs, pn.o.Interface)
	if err != nil {
		pn.reportUnderlay(err)
		if old := pn.network.Load(); old != nil {
			u = old.paths.underlay
		} else if u.mtu, err = routeMTU(); err != nil {
			return nil, nil, err
		}
	} else {
		pn.reportUnderlay(nil)
	}
	nw.paths.underlay = u
	nw.paths.checksumsBySoftware = badChecksums(kernelRelease(), classNet, u.device)
	nw.sizes = sizesFor(u.mtu, nw.paths.overhead(nw.backend), st.PodCIDRs)
	nw.paths.sizes = nw.sizes
	_, more := nw.backend.desired(nw.paths)
	unreachable = append(unreachable, more...)
	return nw, unreachable, nil
}

// KnownBackend returns the back end that the cluster last set for the node with that state folder, or "".
func KnownBackend(stateDir string) string { return loadNetworkState(stateDir).Backend }

func (pn *podNetwork) loadState() networkState { return loadNetworkState(pn.o.StateDir) }

func loadNetworkState(stateDir string) networkState {
	var st networkState
	if _, err := atomicfile.ReadJSON(filepath.Join(stateDir, networkFile), &st); err != nil {
		return networkState{} // a first start, or a file that the Node's values will replace
	}
	return st
}

func (pn *podNetwork) saveState(st networkState) error {
	if st.equal(pn.loadState()) {
		return nil
	}
	if err := atomicfile.WriteJSON(filepath.Join(pn.o.StateDir, networkFile), st, 0o600); err != nil {
		return fmt.Errorf("remembering the pod networks: %w", err)
	}
	return nil
}

// routeMTU returns the MTU of the default route's device: IPv4's, else IPv6's. A host without a default route reaches
// no other networks. For that host it returns the smallest MTU of its Ethernet devices, at most 1500.
func routeMTU() (int, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := listRoutes(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return 0, fmt.Errorf("listing routes to find the MTU: %w", err)
		}
		best := -1
		for i, r := range routes {
			isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified() && isZeroMask(r.Dst.Mask)
			if isDefault && r.LinkIndex > 0 && (best < 0 || r.Priority < routes[best].Priority) {
				best = i
			}
		}
		if best < 0 {
			continue
		}
		if routes[best].MTU > 0 {
			return routes[best].MTU, nil
		}
		link, err := netlink.LinkByIndex(routes[best].LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("looking at the default route's device: %w", err)
		}
		return link.Attrs().MTU, nil
	}
	links, err := listLinks()
	if err != nil {
		return 0, fmt.Errorf("listing devices to find the MTU: %w", err)
	}
	mtu := 1500
	for _, l := range links {
		if l.Type() == "device" && l.Attrs().Flags&net.FlagUp != 0 && l.Attrs().EncapType == "ether" {
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return mtu, nil
}

func isZeroMask(m net.IPMask) bool {
	ones, _ := m.Size()
	return ones == 0
}
