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

// network is what a pod's attachment needs to know about its node. It is never changed, only replaced.
type network struct {
	podCIDRs []netip.Prefix
	mtu      int
}

// networkFile remembers the pod CIDRs, so that a restart does not need the API to serve pods.
const networkFile = "network.json"

type networkState struct {
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// configureRetry is the wait after a failed attempt to set the node's network up.
const configureRetry = 2 * time.Second

// configureLoop sets the node's network up for the pod CIDRs last known and again for each that PodCIDRs delivers.
func (s *Server) configureLoop(ctx context.Context) {
	cidrs := s.loadCIDRs()
	if len(cidrs) == 0 {
		// A CNI configuration that an earlier run left says that pods can be served, which is not so yet.
		if err := removeConflist(s.o.ConfDir); err != nil {
			s.log.Error(err, "A stale CNI configuration stays; pods will be told to try again later")
		}
		s.log.Info("Pods wait for the node's pod CIDR")
	}
	guard := time.NewTicker(s.guard)
	defer guard.Stop()
	for {
		var retry <-chan time.Time
		if len(cidrs) > 0 {
			if err := s.configure(ctx, cidrs); err != nil {
				s.log.Error(err, "The pod network could not be set up; running pods are not touched, trying again", "after", configureRetry)
				retry = time.After(configureRetry)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-guard.C:
			s.heal(ctx)
			s.warnOfForwardDrops()
		case next, ok := <-s.o.PodCIDRs:
			if !ok {
				<-ctx.Done()
				return
			}
			if len(next) == 0 {
				continue // the node object lost them; what we have still works
			}
			cidrs = next
		}
	}
}

// configure makes the host ready for pods of cidrs and lets them be served from then on. It is idempotent.
func (s *Server) configure(ctx context.Context, cidrs []netip.Prefix) error {
	for _, c := range cidrs {
		if c.Bits() > c.Addr().BitLen()-2 {
			return fmt.Errorf("the node's pod CIDR %s is too small to allocate from", c)
		}
	}
	mtu, err := routeMTU()
	if err != nil {
		return err
	}
	if old := s.network.Load(); old != nil && slices.Equal(old.podCIDRs, cidrs) && old.mtu == mtu {
		return nil
	}
	if err := s.saveCIDRs(cidrs); err != nil {
		return err
	}
	if err := s.collect(nil); err != nil {
		return err
	}
	nw := &network{podCIDRs: cidrs, mtu: mtu}
	if _, err := s.applyHost(nw); err != nil {
		return err
	}
	if err := s.applyRules(ctx, cidrs); err != nil {
		return err
	}
	s.network.Store(nw)
	if err := s.writeConflist(); err != nil {
		return err
	}
	s.warnOfForwardDrops()
	s.log.Info("The pod network is ready", "podCIDRs", cidrs, "mtu", mtu, "device", Bridge)
	return nil
}

func (s *Server) loadCIDRs() []netip.Prefix {
	data, err := os.ReadFile(filepath.Join(s.o.StateDir, networkFile))
	var st networkState
	if err != nil || json.Unmarshal(data, &st) != nil {
		return nil // a first start, or a file that the node object will replace
	}
	return st.PodCIDRs
}

func (s *Server) saveCIDRs(cidrs []netip.Prefix) error {
	if slices.Equal(s.loadCIDRs(), cidrs) {
		return nil
	}
	data, err := json.Marshal(networkState{PodCIDRs: cidrs})
	if err != nil {
		return fmt.Errorf("encoding the pod CIDRs: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(s.o.StateDir, networkFile), data, 0o600); err != nil {
		return fmt.Errorf("remembering the pod CIDRs: %w", err)
	}
	return nil
}

// routeMTU returns the MTU of the device that the default route leaves by: IPv4's, else IPv6's. A host without
// default route talks to nobody outside; there the smallest MTU of its Ethernet devices is safe, else 1500.
func routeMTU() (int, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
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
	links, err := netlink.LinkList()
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
