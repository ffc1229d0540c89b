// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// txChecksum is the kernel's name of the feature that checksums disables (net/ethtool/common.c,
// netdev_features_strings).
const txChecksum = "tx-checksum-ip-generic"

// observeTunnel reads what the kernel has for a VXLAN device apart from addresses, routes and neighbours: its
// forwarding entries, and whether checksums are computed in software. It passes each to put. Other devices have
// neither.
func observeTunnel(l netlink.Link, put func(object)) error {
	if l.Type() != kindVXLAN {
		return nil
	}
	name := l.Attrs().Name
	entries, err := listNeighbours(l.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("listing the forwarding entries of %s: %w", name, err)
	}
	for _, e := range entries {
		if dst, ok := netip.AddrFromSlice(e.IP); ok && len(e.HardwareAddr) > 0 {
			put(forward{name, e.HardwareAddr.String(), dst.Unmap()})
		}
	}
	if software, err := sendsSoftwareChecksums(name); err == nil && software {
		put(checksums{name})
	}
	return nil
}

// vxlanOf returns the properties of a device of kind vxlan, and the zero value for other kinds.
func vxlanOf(l netlink.Link) vxlanLink {
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return vxlanLink{}
	}
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	out := vxlanLink{v.VxlanId, v.Port, local.Unmap(), v.HardwareAddr.String()}
	if v.Learning || v.FlowBased {
		out.vni = -1 // another program has changed it: it is made again
	}
	return out
}

// ensureVXLAN makes the device. It replaces a device with wrong properties that cannot be changed. The device has no
// fixed lower device: the host's routes decide, and neither the loss of a link nor a link's MTU affects it.
func (k *kernel) ensureVXLAN(want link) error {
	l, err := k.find(want.name)
	if err == nil && (l.Type() != kindVXLAN || vxlanOf(l) != want.vxlan) {
		if err := removeDevice(want.name); err != nil {
			return err
		}
		delete(k.links, want.name)
		l, err = k.find(want.name)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := addVXLAN(want); err != nil {
			return err
		}
		l, err = k.find(want.name)
	}
	if err != nil {
		return err
	}
	if l.Attrs().MTU != want.mtu {
		if err := netlink.LinkSetMTU(l, want.mtu); err != nil {
			return fmt.Errorf("setting the MTU: %w", err)
		}
	}
	return netlink.LinkSetUp(l)
}

func addVXLAN(want link) error {
	mac, err := net.ParseMAC(want.vxlan.mac)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = want.name, want.mtu, mac // udev does not change an address that is set at once
	err = netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: want.vxlan.vni, Port: want.vxlan.port, SrcAddr: want.vxlan.local.AsSlice(), Learning: false,
	})
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another program has a VXLAN device with the number %d at port %d: %w", want.vxlan.vni, want.vxlan.port, err)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("this kernel cannot make a VXLAN device; load its module (modprobe vxlan), install the kernel's extra modules, "+
			"or choose another --network-backend for the cluster: %w", err)
	}
	return err
}

// forwardEntry converts the entry to netlink's type.
func forwardEntry(index int, f forward) (*netlink.Neigh, error) {
	mac, err := net.ParseMAC(f.mac)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: f.dst.AsSlice(),
		HardwareAddr: mac,
	}, nil
}

func ensureForward(l netlink.Link, f forward) error {
	e, err := forwardEntry(l.Attrs().Index, f)
	if err != nil {
		return err
	}
	return netlink.NeighSet(e)
}

func removeForward(l netlink.Link, f forward) error {
	e, err := forwardEntry(l.Attrs().Index, f)
	if err != nil {
		return err
	}
	return netlink.NeighDel(e)
}

// sendsSoftwareChecksums reports whether the processor computes the checksums of what the device sends. A tunnel can
// offload them only by txChecksum, so the kernel's older request for all kinds of offload gives the right result. This
// runs every half minute. The ethtool package would allocate a megabyte for the names of all features each time.
func sendsSoftwareChecksums(device string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	value := struct{ command, on uint32 }{command: unix.ETHTOOL_GTXCSUM} // struct ethtool_value
	request := struct {                                                  // struct ifreq
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte // the rest of its union
	}{value: unsafe.Pointer(&value)}
	if copy(request.name[:unix.IFNAMSIZ-1], device) < len(device) {
		return false, fmt.Errorf("%q is no device's name", device)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return false, fmt.Errorf("reading the features of %s: %w", device, errno)
	}
	return value.on == 0, nil
}

func disableTxChecksumOffload(device string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("opening ethtool: %w", err)
	}
	defer e.Close()
	return e.Change(device, map[string]bool{txChecksum: false})
}
