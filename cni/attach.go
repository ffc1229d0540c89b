// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

// devicePrefix starts the name of every pod's device on the host. Network managers ignore veth*.
const devicePrefix = "vethcor"

// hostMAC is the link address of the host's end of every pair. Each pair is a separate link, so all may have the same.
// udev does not change an address that was set explicitly.
var hostMAC = net.HardwareAddr{0x0e, 0xc0, 0x7a, 0xc1, 0xe0, 0x01}

// deviceName returns the name of an attachment's device on the host. It has 40 bits of a hash, so that it fits into the
// kernel's 15 characters.
func deviceName(k key) string { return devicePrefix + deviceHash(k) }

func deviceHash(k key) string {
	sum := sha256.Sum256([]byte(k.String()))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// removePodDevices removes an attachment's device, and the device that limits its egress.
func removePodDevices(k key) error {
	return errors.Join(removeDevice(deviceName(k)), removeDevice(shaperName(k)))
}

// podMAC derives a pod's MAC from its first address, as other plugins do. So it is stable, and readable in a capture.
func podMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// attach makes r's veth pair, addresses and routes. On failure it removes them.
func attach(r *attachment, nw *network) (err error) {
	ns, err := netns.GetFromPath(r.Netns)
	if err != nil {
		return fmt.Errorf("opening the pod's network namespace %s: %w", r.Netns, err)
	}
	defer func() { _ = ns.Close() }()
	mac, err := net.ParseMAC(r.MAC)
	if err != nil {
		return fmt.Errorf("reading the pod's MAC: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Flags = r.HostDevice, nw.mtu, hostMAC, net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: r.IfName, PeerHardwareAddr: mac, PeerMTU: uint32(nw.mtu),
		PeerTxQLen: -1, PeerNamespace: netlink.NsFd(int(ns)),
	}
	// The name is a hash of the attachment, which does not exist yet. So an existing device of that name is a leftover.
	if err := removePodDevices(r.key()); err != nil {
		return err
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("making the veth pair %s: %w", r.HostDevice, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removePodDevices(r.key()))
		}
	}()
	if err := setupPod(ns, r, nw); err != nil {
		return err
	}
	k := newKernel()
	for _, o := range desiredPod(r, nw.podCIDRs, nw.mtu) {
		if err := k.ensure(o); err != nil {
			return err
		}
	}
	return nil
}

// setupPod configures the pod's end. The pod has single addresses: everything else is behind the gateway. The gateway's
// MAC is a permanent entry, so that no broadcast is ever needed.
func setupPod(ns netns.NsHandle, r *attachment, nw *network) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("entering the pod's network namespace: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("setting the pod's loopback up: %w", err)
	}
	if slices.ContainsFunc(r.IPs, netip.Addr.Is6) {
		if err := inNetns(ns, func() error { return podSysctls(r.IfName) }); err != nil {
			return err
		}
	}
	link, err := h.LinkByName(r.IfName)
	if err != nil {
		return fmt.Errorf("looking for %s in the pod: %w", r.IfName, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up in the pod: %w", r.IfName, err)
	}
	for i, ip := range r.IPs {
		if err := setupPodFamily(h, link, ip, gateway(nw.podCIDRs[i]), nw.sizes); err != nil {
			return err
		}
	}
	return nil
}

func setupPodFamily(h *netlink.Handle, link netlink.Link, ip, gw netip.Addr, s sizes) error {
	addr := &netlink.Addr{IPNet: hostNet(ip)}
	if ip.Is6() {
		addr.Flags = unix.IFA_F_NODAD // no other machine is on the link
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("giving the pod the address %s: %w", ip, err)
	}
	index := link.Attrs().Index
	if err := h.NeighSet(permanentNeighbour(index, gw, hostMAC)); err != nil {
		return fmt.Errorf("telling the pod its gateway's MAC: %w", err)
	}
	toGateway := &netlink.Route{LinkIndex: index, Dst: hostNet(gw), Scope: netlink.SCOPE_LINK}
	if err := h.RouteAdd(toGateway); err != nil {
		return fmt.Errorf("routing the pod to its gateway %s: %w", gw, err)
	}
	if err := h.RouteAdd(podDefault(index, gw, s)); err != nil {
		return fmt.Errorf("giving the pod its default route by %s: %w", gw, err)
	}
	return nil
}

// podDefault returns a pod's default route.
func podDefault(index int, gw netip.Addr, s sizes) *netlink.Route {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &netlink.Route{LinkIndex: index, Dst: ipNet(all), Gw: gw.AsSlice(), MTU: s.routeMTU(all)}
}

// podSysctls makes us the only source of the pod's IPv6 addresses and routes. It has to run in the pod's network
// namespace.
func podSysctls(ifName string) error {
	for _, p := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"accept_dad", "0"}} {
		if err := writeSysctl(sysctl{"net/ipv6/conf/" + ifName + "/" + p[0], p[1]}); err != nil {
			return err
		}
	}
	return nil
}

// inNetns runs f on a separate thread in ns. The thread ends with f, so that no other goroutine ever runs in ns.
func inNetns(ns netns.NsHandle, f func() error) error {
	return netlinkutil.Do(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}
