// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// guardPeriod is how often to look whether the nftables table is still there.
const guardPeriod = 30 * time.Second

// heal makes again what another program removed: the nftables table, as a restart of a host firewall does, or the
// bridge.
func (s *Server) heal(ctx context.Context) {
	nw := s.network.Load()
	if nw == nil {
		return
	}
	if !bridgeIntact(s.o.Bridge, nw.podCIDRs) {
		s.log.Info("The bridge of the pod network was changed or removed by another program; making it again", "device", s.o.Bridge)
		if err := ensureBridge(s.o.Bridge, nw.podCIDRs, s.o.ServiceCIDRs, nw.mtu); err != nil {
			s.log.Error(err, "The node does not reach its pods; trying again", "after", s.guard)
		}
		s.ensureHostSides(nw.podCIDRs) // their source address went with the bridge
	}
	// An error here says nothing about the table.
	if ok, err := nfttable.Exists(nfttable.Table{Family: nfttable.INet, Name: tableName}); err == nil && !ok {
		s.log.Info("The nftables table of the pod network was removed by another program; writing it again")
		if err := s.applyRules(ctx, nw.podCIDRs); err != nil {
			s.log.Error(err, "Host ports and traffic from pods to the outside do not work; trying again", "after", s.guard)
		}
	}
}

// bridgeIntact looks whether the bridge is up with the node's addresses; the Service CIDR's route goes with those.
func bridgeIntact(name string, cidrs []netip.Prefix) bool {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return !errors.As(err, &netlink.LinkNotFoundError{}) // another error says nothing about the bridge
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return true
	}
	have := map[netip.Addr]bool{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			have[ip.Unmap()] = true
		}
	}
	for _, c := range cidrs {
		if !have[gateway(c)] {
			return false
		}
	}
	return link.Attrs().Flags&net.FlagUp != 0
}

func (s *Server) ensureHostSides(cidrs []netip.Prefix) {
	for _, r := range s.records.list() {
		if err := ensureHostSide(r, cidrs); err != nil {
			s.log.Error(err, "A running pod may be unreachable", "pod", r.Pod, "container", r.ContainerID)
		}
	}
}

// warnOfForwardDrops says once that somebody else's firewall stands in the pods' way: an accept in our own table cannot
// overrule it, and other programs' tables are not ours to change.
func (s *Server) warnOfForwardDrops() {
	drops, err := nfttable.ForwardDrops()
	if err != nil {
		return // it is advice only
	}
	now := strings.Join(drops, ", ")
	if now == s.forwardDrops {
		return
	}
	s.forwardDrops = now
	if now == "" {
		s.log.Info("No other program's firewall drops forwarded packets any more")
		return
	}
	s.log.Info("Another program's firewall drops forwarded packets: pods reach other pods, Services and the outside only where its "+
		"rules allow it. Allow the pods there, with Docker for example: "+
		"iptables -I DOCKER-USER -s CIDR -j ACCEPT; iptables -I DOCKER-USER -d CIDR -j ACCEPT",
		"chains", now, "CIDR", s.o.ClusterCIDRs)
}
