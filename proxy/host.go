// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
)

// hostNetwork are the addresses that this machine itself needs. A Service with one of them as an external IP would get
// what the machine sends to its router or its resolver, or what others send to the machine.
type hostNetwork struct {
	local     map[netip.Prefix]bool // addresses whose packets the kernel delivers locally, and broadcast addresses
	gateways  map[netip.Addr]bool
	resolvers map[netip.Addr]bool
}

// hostNetworkOf reads the routes of all tables. Local addresses are in the table local. Local routes of other tables
// are for programs that accept packets for any address. The addresses of the device for Services are ignored.
func hostNetworkOf(routes []netlink.Route, servicesDevice int, resolvers []netip.Addr) hostNetwork {
	h := hostNetwork{map[netip.Prefix]bool{}, map[netip.Addr]bool{}, map[netip.Addr]bool{}}
	gateway := func(ip net.IP, via netlink.Destination) {
		if v, ok := via.(*netlink.Via); ok {
			ip = v.Addr
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			h.gateways[a.Unmap()] = true
		}
	}
	for _, r := range routes {
		switch {
		case r.LinkIndex == servicesDevice:
		case r.Type == unix.RTN_LOCAL || r.Type == unix.RTN_BROADCAST || r.Type == unix.RTN_ANYCAST:
			if r.Table != unix.RT_TABLE_LOCAL || r.Dst == nil {
				continue
			}
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
				bits, _ := r.Dst.Mask.Size()
				h.local[netip.PrefixFrom(a.Unmap(), bits)] = true
			}
		default:
			gateway(r.Gw, r.Via)
			for _, hop := range r.MultiPath {
				gateway(hop.Gw, hop.Via)
			}
		}
	}
	for _, a := range resolvers {
		h.resolvers[a.WithZone("")] = true
	}
	return h
}

const isGateway = "is a gateway's of this machine"

// reason returns for what this machine needs an address, or "".
func (h hostNetwork) reason(a netip.Addr) string {
	switch {
	case h.gateways[a]:
		return isGateway
	case h.resolvers[a]:
		return "is a resolver's of this machine"
	}
	for p := range h.local {
		if p.Contains(a) {
			return "is local or broadcast to this machine's kernel"
		}
	}
	return ""
}

func (h hostNetwork) equal(o hostNetwork) bool {
	return maps.Equal(h.local, o.local) && maps.Equal(h.gateways, o.gateways) && maps.Equal(h.resolvers, o.resolvers)
}

// readHostNetwork reads the kernel's routes, and the files that name resolvers.
func readHostNetwork(resolvConf string) (hostNetwork, error) {
	device := -1
	switch link, err := netlink.LinkByName(nft.IPVSDevice); {
	case err == nil:
		device = link.Attrs().Index
	case !errors.As(err, new(netlink.LinkNotFoundError)):
		return hostNetwork{}, fmt.Errorf("looking for the device %s: %w", nft.IPVSDevice, err)
	}
	var routes []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlinkutil.ConsistentList(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return hostNetwork{}, fmt.Errorf("listing this machine's routes: %w", err)
		}
		routes = append(routes, all...)
	}
	files := slices.Clone(resolvconf.HostFiles)
	if resolvConf != "" {
		files = append(files, resolvConf)
	}
	var resolvers []netip.Addr
	for _, f := range files {
		servers, err := resolvconf.Servers(f)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return hostNetwork{}, err
		}
		resolvers = append(resolvers, servers...)
	}
	return hostNetworkOf(routes, device, resolvers), nil
}

// refreshHost reads the addresses that this machine needs, which change without an event of the API. When they have
// changed, all Services are filtered again. After an error the last result is used. Before the first success no
// external IP is served.
func (p *Proxy) refreshHost() (changed bool) {
	x := p.o.externals
	now, err := x.readHost()
	return x.change(func() bool {
		if err != nil && !x.hostFailed {
			p.log.Error(err, "Which addresses this machine itself needs could not be read again; Services' external IPs are served by what "+
				"was known last, and none before that has been read once")
		}
		x.hostFailed = err != nil
		if err != nil || x.host != nil && x.host.equal(now) {
			return false
		}
		x.host = &now
		return true
	}, p.backend.OnServiceUpdate)
}

// judgesByHost reports whether any Service has an address that is filtered by the routes: an external IP, or one of a
// pool, whose status, unlike that of a node's address, lists no ports.
func (x *externals) judgesByHost() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.filtered {
		if len(s.received.Spec.ExternalIPs) > 0 || slices.ContainsFunc(s.received.Status.LoadBalancer.Ingress,
			func(in corev1.LoadBalancerIngress) bool { return in.IP != "" && len(in.Ports) == 0 }) {
			return true
		}
	}
	return false
}
