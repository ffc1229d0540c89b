// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// network is what a pod's attachment and the host's side need to know about the node and the others. It is never changed, only replaced.
type network struct {
	podCIDRs []netip.Prefix
	sizes
	ways waysInput
}

func (nw *network) equal(old *network) bool {
	return old != nil && slices.Equal(nw.podCIDRs, old.podCIDRs) && nw.sizes == old.sizes && nw.ways.equal(old.ways)
}

// networkFile remembers the nodes' pod networks, so that a restart does not need the API to serve pods.
const networkFile = "network.json"

// networkState is what is known from the API.
type networkState struct {
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Peers    []Peer         `json:"peers,omitempty"`
}

func (st networkState) equal(other networkState) bool {
	return slices.Equal(st.PodCIDRs, other.PodCIDRs) && slices.EqualFunc(st.Peers, other.Peers, Peer.equal)
}

// configureRetry is the wait after a failed attempt to set the node's network up.
const configureRetry = 2 * time.Second

// configureLoop sets the node's network up for what was last known of the nodes, and again for each change: of this node's pod CIDRs, of
// the other nodes, and of the kernel's side.
func (s *Server) configureLoop(ctx context.Context, changes <-chan struct{}) {
	st := s.loadState()
	if len(st.PodCIDRs) == 0 {
		// A CNI configuration that an earlier run left says that pods can be served, which is not so yet.
		if err := removeConflist(s.o.ConfDir); err != nil {
			s.log.Error(err, "A stale CNI configuration stays; pods will be told to try again later")
		}
		s.log.Info("Pods wait for the node's pod CIDR")
	}
	guard := time.NewTicker(s.guard)
	defer guard.Stop()
	podCIDRs, peers := s.o.PodCIDRs, s.o.Peers
	for {
		var retry <-chan time.Time
		if len(st.PodCIDRs) > 0 {
			if err := s.configure(ctx, st); err != nil {
				s.log.Error(err, "The pod network could not be set up; running pods are not touched, trying again", "after", configureRetry)
				retry = time.After(configureRetry)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-changes:
			s.heal(ctx)
		case <-guard.C:
			s.heal(ctx)
			s.warnOfFirewalls()
		case next, ok := <-podCIDRs:
			if !ok {
				podCIDRs = nil
			}
			if len(next) > 0 { // the node object may lose them; what we have still works
				st.PodCIDRs = next
			}
		case next, ok := <-peers:
			if !ok {
				peers = nil
				continue
			}
			st.Peers = next
		}
	}
}

// configure makes the host ready for pods and lets them be served from then on. It is idempotent, and does nothing where nothing has changed.
func (s *Server) configure(ctx context.Context, st networkState) error {
	for _, c := range st.PodCIDRs {
		if c.Bits() > c.Addr().BitLen()-2 {
			return fmt.Errorf("the node's pod CIDR %s is too small to allocate from", c)
		}
	}
	nw, trouble, err := s.desiredNetwork(st)
	if err != nil {
		return err
	}
	s.reportPeers(trouble)
	old := s.network.Load()
	if nw.equal(old) {
		return nil
	}
	if err := s.saveState(st); err != nil {
		return err
	}
	if old == nil || !slices.Equal(old.podCIDRs, nw.podCIDRs) {
		if err := s.collect(nil); err != nil {
			return err
		}
	}
	if _, err := s.applyHost(nw); err != nil {
		return err
	}
	s.rules.network.Store(nw)
	if err := s.applyRules(ctx); err != nil {
		return err
	}
	s.network.Store(nw)
	if old == nil || old.sizes != nw.sizes {
		s.resizePods(nw)
	}
	if err := s.writeConflist(); err != nil {
		return err
	}
	s.warnOfFirewalls()
	s.log.Info("The pod network is ready", "podCIDRs", nw.podCIDRs, "mtu", nw.mtu, "device", Bridge,
		"backend", s.o.Backend, "underlay", nw.ways.underlay.device, "otherNodes", len(nw.ways.peers))
	return nil
}

// desiredNetwork is what follows from the nodes and the underlay as it is now. An underlay that cannot be found keeps the last one: its
// address may come back, and pods of this node need none.
func (s *Server) desiredNetwork(st networkState) (*network, []peerTrouble, error) {
	nw := &network{podCIDRs: st.PodCIDRs}
	nw.ways.podCIDRs = st.PodCIDRs
	var trouble []peerTrouble
	nw.ways.peers, trouble = acceptable(st.Peers, st.PodCIDRs, s.o.ClusterCIDRs)
	u, err := findUnderlay(s.o.NodeIPs, s.o.Interface)
	if err != nil {
		s.reportUnderlay(err)
		if old := s.network.Load(); old != nil {
			u = old.ways.underlay
		} else if u.mtu, err = routeMTU(); err != nil {
			return nil, nil, err
		}
	} else {
		s.reportUnderlay(nil)
	}
	nw.ways.underlay = u
	nw.ways.checksumsBySoftware = badChecksums(kernelRelease(), classNet, u.device)
	nw.sizes = sizesFor(u.mtu, nw.ways.overhead(s.backend), st.PodCIDRs)
	nw.ways.sizes = nw.sizes
	_, more := s.backend.desired(nw.ways)
	trouble = append(trouble, more...)
	return nw, trouble, nil
}

func (s *Server) loadState() networkState {
	data, err := os.ReadFile(filepath.Join(s.o.StateDir, networkFile))
	var st networkState
	if err != nil || json.Unmarshal(data, &st) != nil {
		return networkState{} // a first start, or a file that the node object will replace
	}
	return st
}

func (s *Server) saveState(st networkState) error {
	if st.equal(s.loadState()) {
		return nil
	}
	data, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encoding the pod networks: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(s.o.StateDir, networkFile), data, 0o600); err != nil {
		return fmt.Errorf("remembering the pod networks: %w", err)
	}
	return nil
}

// routeMTU returns the MTU of the device that the default route leaves by: IPv4's, else IPv6's. A host without
// default route talks to nobody outside; there the smallest MTU of its Ethernet devices is safe, else 1500.
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
