// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A UDP sender that does not pause keeps its conntrack entry alive, and the entry keeps the packets' destination: the
// pod that had the host port before, or the host itself if no pod had it. TCP connections end by themselves.

// staleFlows matches the conntrack entries that send packets for one pod's UDP host ports to a wrong destination. It
// leaves alone other protocols, other ports, and packets that are merely forwarded to the same port of another machine.
type staleFlows struct {
	ports []uint16
	local map[netip.Addr]bool // the host's addresses; nil when the pod is removed
	pod   []netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP || !slices.Contains(s.ports, flow.Forward.DstPort) {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	asked, ok2 := netip.AddrFromSlice(flow.Forward.DstIP)
	if !ok || !ok2 {
		return false
	}
	ofPod := slices.Contains(s.pod, to.Unmap())
	if s.local == nil {
		return ofPod
	}
	return s.local[asked.Unmap()] && !ofPod
}

// dropStaleFlows deletes the flows that are wrong once r was added, or was removed.
func dropStaleFlows(r *attachment, removed bool) error {
	s := staleFlows{pod: r.IPs}
	for _, p := range r.Ports {
		if p.Protocol == "udp" {
			s.ports = append(s.ports, p.HostPort)
		}
	}
	if len(s.ports) == 0 {
		return nil
	}
	if !removed {
		addrs, err := listAddresses()
		if err != nil {
			return fmt.Errorf("listing the host's addresses: %w", err)
		}
		s.local = map[netip.Addr]bool{}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				s.local[ip.Unmap()] = true
			}
		}
	}
	var errs []error
	for _, family := range families(r.IPs) {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, s)
		// A dump that raced with changes is incomplete, not wrong. An entry that it missed expires when its sender
		// pauses.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			errs = append(errs, fmt.Errorf("forgetting old UDP flows of host ports: %w", err))
		}
	}
	return errors.Join(errs...)
}

func families(ips []netip.Addr) []netlink.InetFamily {
	var out []netlink.InetFamily
	for _, ip := range ips {
		if ip.Is4() {
			out = append(out, netlink.FAMILY_V4)
		} else {
			out = append(out, netlink.FAMILY_V6)
		}
	}
	return out
}
