// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
		// A configuration from an earlier life would promise what cannot be kept yet.
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

// configure makes the host ready for pods of cidrs and opens for business. It is idempotent.
func (s *Server) configure(ctx context.Context, cidrs []netip.Prefix) error {
	for _, c := range cidrs {
		if c.Bits() > c.Addr().BitLen()-2 {
			return fmt.Errorf("the node's pod CIDR %s is too small to allocate from", c)
		}
	}
	mtu := s.o.MTU
	if mtu == 0 {
		var err error
		if mtu, err = routeMTU(); err != nil {
			return err
		}
	}
	if old := s.network.Load(); old != nil && slices.Equal(old.podCIDRs, cidrs) && old.mtu == mtu {
		return nil
	}
	if err := s.saveCIDRs(cidrs); err != nil {
		return err
	}
	if err := enableForwarding(cidrs); err != nil {
		return err
	}
	if err := ensureBridge(s.o.Bridge, cidrs, s.o.ServiceCIDRs, mtu); err != nil {
		return err
	}
	if err := s.collect(nil); err != nil {
		return err
	}
	s.ensureHostSides(cidrs)
	if err := s.applyRules(ctx, cidrs); err != nil {
		return err
	}
	s.network.Store(&network{podCIDRs: cidrs, mtu: mtu})
	if err := s.writeConflist(); err != nil {
		return err
	}
	s.warnOfForwardDrops()
	s.log.Info("The pod network is ready", "podCIDRs", cidrs, "mtu", mtu, "device", s.o.Bridge)
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

// ensureBridge makes the device that carries the node's addresses in the pod network, one per CIDR. It is a bridge
// without ports because every kernel has bridges and not every one has dummy devices. Routes of serviceCIDRs point at
// it: an address without any route is refused before Service rules see the packet, which is what a host without
// default route would do to its own processes.
func ensureBridge(name string, cidrs, serviceCIDRs []netip.Prefix, mtu int) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("making the bridge %s: %w", name, err)
		}
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return fmt.Errorf("looking for the bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("the device %s is a %s, not a bridge: remove it, or choose another bridge name", name, link.Type())
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("setting the MTU of %s: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
	}
	if err := ensureAddresses(link, cidrs); err != nil {
		return err
	}
	for _, svc := range serviceCIDRs {
		i := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is4() == svc.Addr().Is4() })
		if i < 0 {
			continue
		}
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(svc), Src: gateway(cidrs[i]).AsSlice(), Scope: netlink.SCOPE_LINK,
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("routing the Service CIDR %s to %s: %w", svc, name, err)
		}
	}
	return nil
}

// ensureAddresses gives link the gateway address of each CIDR and takes all others away, link-local ones excepted.
func ensureAddresses(link netlink.Link, cidrs []netip.Prefix) error {
	want := map[netip.Addr]bool{}
	for _, c := range cidrs {
		want[gateway(c)] = true
		addr := &netlink.Addr{IPNet: hostNet(gateway(c))}
		if c.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // a bridge without ports never finishes duplicate address detection
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("giving %s the address %s: %w", link.Attrs().Name, gateway(c), err)
		}
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range have {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || want[ip.Unmap()] || ip.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("taking the address %s from %s: %w", ip, link.Attrs().Name, err)
		}
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

// enableForwarding lets the host route for its pods. For IPv6 a host that forwards stops listening to router
// advertisements, its own default route among them, unless told to go on (accept_ra 2).
func enableForwarding(cidrs []netip.Prefix) error {
	for _, c := range cidrs {
		if c.Addr().Is4() {
			if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
				return err
			}
			continue
		}
		entries, err := os.ReadDir("/proc/sys/net/ipv6/conf")
		if err != nil {
			return fmt.Errorf("the pod CIDR %s needs IPv6, which this kernel has not or has switched off: %w", c, err)
		}
		for _, e := range entries {
			name := "net/ipv6/conf/" + e.Name() + "/accept_ra"
			if v, err := os.ReadFile("/proc/sys/" + name); err == nil && strings.TrimSpace(string(v)) == "1" {
				if err := sysctl(name, "2"); err != nil {
					return err
				}
			}
		}
		if err := sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return err
		}
	}
	return nil
}

// sysctl sets a kernel parameter of the calling thread's network namespace when it differs.
func sysctl(name, value string) error {
	path := "/proc/sys/" + name
	old, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("setting %s to %s (is /proc/sys read-only?): %w", strings.ReplaceAll(name, "/", "."), strconv.Quote(value), err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hostNet is the network that holds nothing but a.
func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }
