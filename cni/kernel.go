// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	kindBridge = "bridge"
	kindVeth   = "veth"
	kindVXLAN  = "vxlan"

	// routeProtocol marks our routes (rtnetlink(7), rtm_protocol), which distinguishes them from other programs'.
	// iproute2's rt_protos does not assign the number.
	routeProtocol = netlink.RouteProtocol(122)

	sysctlRoot = "/proc/sys/"
)

// kernel reads and writes the objects of the calling thread's network namespace. One value serves one pass, since it
// caches devices.
type kernel struct {
	links map[string]netlink.Link
	wg    *wgDevice // nil without WireGuard
}

func newKernel() *kernel { return &kernel{links: map[string]netlink.Link{}} }

// observe reads our objects and the given sysctls.
func (k *kernel) observe(bridge string, sysctls []sysctl) (map[string]object, error) {
	out := map[string]object{}
	put := func(o object) { out[o.id()] = o }
	links, err := listLinks()
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	names := map[int]string{}
	ownLinks := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		if a.Name == bridge || isPodDevice(l) || strings.HasPrefix(a.Name, tunnelPrefix) {
			ownLinks[a.Index], k.links[a.Name] = a.Name, l
			put(link{a.Name, k.wg.kind(l), a.MTU, a.Flags&net.FlagUp != 0, vxlanOf(l)})
		}
		if strings.HasPrefix(a.Name, tunnelPrefix) {
			if err := observeTunnel(l, put); err != nil {
				return nil, err
			}
			if err := k.wg.observe(l, put); err != nil {
				return nil, err
			}
		}
	}
	addrs, err := listAddresses()
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if device := ownLinks[a.LinkIndex]; ok && device != "" && !ip.IsLinkLocalUnicast() {
			put(address{device, ip.Unmap()})
		}
	}
	for _, family := range kernelFamilies() {
		if err := observeFamily(family, names, ownLinks, put); err != nil {
			return nil, err
		}
	}
	if err := observeBandwidth(ownLinks, put); err != nil {
		return nil, err
	}
	for _, s := range sysctls {
		if v, err := os.ReadFile(sysctlRoot + s.name); err == nil {
			put(sysctl{s.name, strings.TrimSpace(string(v))})
		} else if onlyIPv6(s) {
			put(s)
		}
	}
	return out, nil
}

// kernelFamilies returns the address families. It omits IPv6 where the kernel has none.
func kernelFamilies() []int {
	if _, err := os.Stat(sysctlRoot + "net/ipv6"); err != nil {
		return []int{netlink.FAMILY_V4}
	}
	return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
}

func observeFamily(family int, names, ownLinks map[int]string, put func(object)) error {
	mine := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: routeProtocol}
	routes, err := listRoutes(family, mine, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		dst, ok := prefixOf(r.Dst)
		switch {
		case ok && r.Type == unix.RTN_BLACKHOLE:
			put(blackhole{dst})
		case ok:
			src, _ := netip.AddrFromSlice(r.Src)
			via, _ := netip.AddrFromSlice(r.Gw)
			put(route{dst, names[r.LinkIndex], src.Unmap(), via.Unmap(), r.Flags&int(netlink.FLAG_ONLINK) != 0, r.MTU})
		}
	}
	neighbours, err := listNeighbours(0, family)
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, n := range neighbours {
		ip, ok := netip.AddrFromSlice(n.IP)
		if device := ownLinks[n.LinkIndex]; ok && device != "" && n.State == netlink.NUD_PERMANENT {
			put(neighbour{device, ip.Unmap(), n.HardwareAddr.String()})
		}
	}
	return nil
}

// ensure makes the object, or changes it to the wanted one.
func (k *kernel) ensure(o object) error {
	var err error
	switch o := o.(type) {
	case link:
		err = k.ensureLink(o)
	case address:
		err = k.withDevice(o.device, func(l netlink.Link) error {
			a := &netlink.Addr{IPNet: hostNet(o.ip)}
			if o.ip.Is6() {
				a.Flags = unix.IFA_F_NODAD // a bridge without ports never finishes duplicate address detection
			}
			return netlink.AddrReplace(l, a)
		})
	case route:
		err = k.withDevice(o.device, func(l netlink.Link) error {
			return replaceRoute(kernelRoute(o, l.Attrs().Index))
		})
	case neighbour:
		err = k.withDevice(o.device, func(l netlink.Link) error {
			mac, err := net.ParseMAC(o.mac)
			if err != nil {
				return err
			}
			return netlink.NeighSet(permanentNeighbour(l.Attrs().Index, o.ip, mac))
		})
	case shaper:
		err = k.withDevice(o.device, func(l netlink.Link) error { return setShaper(l, o) })
	case redirect:
		err = k.withDevice(o.device, func(l netlink.Link) error {
			return k.withDevice(o.target, func(to netlink.Link) error { return setRedirect(l, to) })
		})
	case forward:
		err = k.withDevice(o.device, func(l netlink.Link) error { return ensureForward(l, o) })
	case checksums:
		err = disableTxChecksumOffload(o.device)
	case blackhole:
		err = netlink.RouteReplace(o.route())
	case wgIdentity:
		err = k.wg.ensureIdentity()
	case wgPeer:
		err = k.wg.ensurePeer(o)
	case sysctl:
		err = writeSysctl(o)
	}
	if err != nil {
		return fmt.Errorf("making %s: %w", o, err)
	}
	return nil
}

// replaceRoute replaces any route of ours to the same network. The kernel refuses an IPv6 route whose gateway is in
// that network while there is another back end's route by another device: it finds the gateway behind the wrong device
// (net/ipv6/route.c, ip6_route_check_nh_onlink). That route is then removed first.
func replaceRoute(r *netlink.Route) error {
	err := netlink.RouteReplace(r)
	if !errors.Is(err, unix.EINVAL) || r.Gw == nil || r.Gw.To4() != nil {
		return err
	}
	former := &netlink.Route{Dst: r.Dst, Protocol: r.Protocol, Table: r.Table}
	if errDel := netlink.RouteDel(former); errDel != nil {
		return err // there is none, so the error has another cause
	}
	return netlink.RouteReplace(r)
}

func (k *kernel) ensureLink(want link) error {
	if want.kind == kindVXLAN {
		return k.ensureVXLAN(want)
	}
	if want.kind == kindWireGuard {
		if err := k.makeWireGuard(want); err != nil {
			return err
		}
	}
	l, err := k.find(want.name)
	if made := want.maker(); made != nil && errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := netlink.LinkAdd(made); err != nil && !errors.Is(err, unix.EEXIST) {
			return want.explainMissing(err)
		}
		l, err = k.find(want.name)
	}
	if err != nil {
		return err
	}
	if k.wg.kind(l) != want.kind {
		return fmt.Errorf("the device %s is a %s, not a %s, and not ours: remove it or give it another name", want.name, l.Type(),
			want.kind)
	}
	if want.mtu > 0 && l.Attrs().MTU != want.mtu {
		if err := netlink.LinkSetMTU(l, want.mtu); err != nil {
			return fmt.Errorf("setting the MTU: %w", err)
		}
	}
	if !want.up {
		return nil
	}
	err = netlink.LinkSetUp(l)
	if want.kind == kindWireGuard && errors.Is(err, unix.EADDRINUSE) { // setting it up makes it listen
		return cannotListen(clusterconfig.WireGuardPort, err)
	}
	return err
}

// maker returns the device for netlink to make. It is nil for kinds that are not made separately.
func (l link) maker() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.name
	switch l.kind {
	case kindBridge:
		return &netlink.Bridge{LinkAttrs: attrs}
	case kindIFB:
		return &netlink.Ifb{LinkAttrs: attrs}
	}
	return nil
}

// explainMissing explains err if it means that the kernel has no devices of this kind.
func (l link) explainMissing(err error) error {
	if l.kind == kindIFB && errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no ifb devices, which the annotation %s needs: load its module ifb, or remove the annotation: %w",
			annotationEgress, err)
	}
	return err
}

// remove removes the object. It is no error if the object does not exist any more: the end of a namespace removes its
// pod's device, at any moment, and a device's objects are removed with it.
func (k *kernel) remove(o object) error {
	var err error
	switch o := o.(type) {
	case link:
		return removeDevice(o.name)
	case address:
		err = k.withDevice(o.device, func(l netlink.Link) error { return netlink.AddrDel(l, &netlink.Addr{IPNet: hostNet(o.ip)}) })
	case route:
		err = k.withDevice(o.device, func(l netlink.Link) error {
			r := kernelRoute(o, l.Attrs().Index)
			r.Src = nil // the source address may be removed already; it does not identify a route
			return netlink.RouteDel(r)
		})
	case neighbour:
		err = k.withDevice(o.device, func(l netlink.Link) error { return netlink.NeighDel(permanentNeighbour(l.Attrs().Index, o.ip, nil)) })
	case shaper:
		err = k.withDevice(o.device, removeShaper)
	case redirect:
		err = k.withDevice(o.device, removeRedirect)
	case forward:
		err = k.withDevice(o.device, func(l netlink.Link) error { return removeForward(l, o) })
	case blackhole:
		err = netlink.RouteDel(o.route())
	case wgPeer:
		err = k.wg.removePeer(o)
	}
	missing := errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL)
	if err != nil && !missing {
		return fmt.Errorf("removing %s: %w", o, err)
	}
	return nil
}

func (k *kernel) withDevice(device string, do func(netlink.Link) error) error {
	l, err := k.find(device)
	if err != nil {
		return err
	}
	return do(l)
}

func (k *kernel) find(name string) (netlink.Link, error) {
	if l := k.links[name]; l != nil {
		return l, nil
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("looking for the device %s: %w", name, err)
	}
	k.links[name] = l
	return l, nil
}

// kernelRoute converts a route to netlink's type.
func kernelRoute(o route, index int) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: ipNet(o.dst), Scope: netlink.SCOPE_LINK, Protocol: routeProtocol, MTU: o.mtu}
	if o.src.IsValid() {
		r.Src = o.src.AsSlice()
	}
	if o.via.IsValid() {
		r.Gw, r.Scope = o.via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if o.onlink {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	return r
}

// routerAdvertised lists the devices, except ours, that accept router advertisements while the host does not forward.
func routerAdvertised(bridge string) []string {
	const dir = "net/ipv6/conf/"
	entries, err := os.ReadDir(sysctlRoot + dir)
	if err != nil {
		return nil // without IPv6 there are none
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		if name == "all" || name == "default" || name == bridge || ownDevice(name) {
			continue // "all" and "default" are no devices
		}
		if v, err := os.ReadFile(sysctlRoot + dir + name + "/accept_ra"); err == nil && strings.TrimSpace(string(v)) != "0" {
			out = append(out, name)
		}
	}
	return out
}

// onlyIPv6 reports whether a parameter disables something of IPv6 and the kernel has no IPv6.
func onlyIPv6(s sysctl) bool {
	if !strings.HasPrefix(s.name, "net/ipv6/") || !strings.HasSuffix(s.name, "/accept_ra") || s.value != "0" {
		return false
	}
	_, err := os.Stat(sysctlRoot + "net/ipv6/conf/all")
	return errors.Is(err, os.ErrNotExist)
}

// writeSysctl sets a kernel parameter of the calling thread's network namespace when it differs.
func writeSysctl(s sysctl) error {
	path := sysctlRoot + s.name
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == s.value {
		return nil
	}
	err := os.WriteFile(path, []byte(s.value), 0)
	if errors.Is(err, os.ErrNotExist) && onlyIPv6(s) {
		return nil
	}
	if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.name, "net/ipv6/") {
		if _, noIPv6 := os.Stat(sysctlRoot + "net/ipv6/conf/all"); noIPv6 != nil {
			return fmt.Errorf("the pod CIDRs need IPv6, which this kernel has not or has switched off: %w", err)
		}
		return nil // the device was removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("setting %s to %s (is /proc/sys read-only?): %w", strings.ReplaceAll(s.name, "/", "."), strconv.Quote(s.value),
			err)
	}
	return nil
}

// permanentNeighbour returns a neighbour entry that the kernel never resolves and never deletes.
func permanentNeighbour(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}

// isPodDevice reports whether the device is a pod's device on the host.
func isPodDevice(l netlink.Link) bool {
	name := l.Attrs().Name
	return l.Type() == kindVeth && strings.HasPrefix(name, devicePrefix) || l.Type() == kindIFB && strings.HasPrefix(name, shaperPrefix)
}

func removeDevice(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	// The end of a namespace removes the pair with it, at any moment.
	if err == nil || errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("removing the device %s: %w", name, err)
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hostNet returns the network that contains only a.
func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

// prefixOf converts a route's destination, or an address with its network. It returns false for nil.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones), ok
}
