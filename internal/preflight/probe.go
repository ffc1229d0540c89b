// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
	"github.com/coracle-k8s/coracle/internal/netlinkutil"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
)

// LocalHost returns the Host for the machine on which this process runs.
func LocalHost() Host {
	return Host{FS: os.DirFS("/"), Root: os.Geteuid() == 0, Now: time.Now, Probe: kernelProbe{}}
}

// kernelProbe implements Probe with the kernel of this machine.
type kernelProbe struct{}

// inNewNamespaces runs f on a thread with new namespaces, which end with the thread.
func inNewNamespaces(flags int, f func() error) error {
	return netlinkutil.Do(func() error {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("making a namespace: %w", err)
		}
		return f()
	})
}

func (kernelProbe) Link(kind string) error {
	return inNewNamespaces(unix.CLONE_NEWNET, func() error {
		attrs := netlink.LinkAttrs{Name: "coracle-check"}
		var link netlink.Link
		switch kind {
		case "bridge":
			link = &netlink.Bridge{LinkAttrs: attrs}
		case "veth":
			link = &netlink.Veth{LinkAttrs: attrs, PeerName: "coracle-peer"}
		case "vxlan":
			link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472}
		default:
			return fmt.Errorf("unknown kind %q", kind)
		}
		return netlink.LinkAdd(link)
	})
}

func (kernelProbe) NAT() error {
	return inNewNamespaces(unix.CLONE_NEWNET, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "coracle-check"})
		chain := c.AddChain(&nftables.Chain{Name: "post", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
			Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}})
		return c.Flush()
	})
}

func (kernelProbe) Overlay(dir string) error {
	tmp, err := os.MkdirTemp(nearestFolder(dir), ".coracle-check-*")
	if err != nil {
		return withoutFileName(err)
	}
	err = inNewNamespaces(unix.CLONE_NEWNS, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		sub := func(name string) string { return filepath.Join(tmp, name) }
		for _, name := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(sub(name), 0o700); err != nil {
				return withoutFileName(err)
			}
		}
		options := "lowerdir=" + sub("lower") + ",upperdir=" + sub("upper") + ",workdir=" + sub("work")
		if err := unix.Mount("overlay", sub("merged"), "overlay", 0, options); err != nil {
			return err
		}
		return unix.Unmount(sub("merged"), unix.MNT_DETACH)
	})
	return errors.Join(err, os.RemoveAll(tmp))
}

// Listeners implements Probe.
func (kernelProbe) Listeners(ports []int, at []netip.Addr) (map[int]string, error) {
	return Listeners(ports, at)
}

func (kernelProbe) Listen(p Port) error {
	host := ""
	if p.Address.IsValid() {
		host = p.Address.String()
	}
	address := net.JoinHostPort(host, strconv.Itoa(p.Number))
	var err error
	if p.Network == "udp" {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp", address); err == nil {
			return c.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil {
			return l.Close()
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		if who := OwnerOf(p.Network, p.Number); who != "" {
			return errors.New("used by " + who)
		}
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// fileSystems maps magic numbers of statfs(2) to names.
var fileSystems = map[int64]string{
	0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs", 0x794c7630: "overlay", 0x6969: "nfs", 0xff534d42: "cifs",
	0xfe534d42: "smb2",
	0x01021997: "9p", 0x65735546: "fuse", 0x00c36400: "ceph", 0x2fc12fc1: "zfs", 0xf2f52010: "f2fs", 0x4d44: "vfat", 0x858458f6: "ramfs",
	0xca451a4e: "bcachefs",
}

func (kernelProbe) Space(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(nearestFolder(path), &st); err != nil {
		return Space{}, err
	}
	size := uint64(st.Bsize)
	s := Space{Type: fileSystems[int64(st.Type)&0xffffffff], Total: st.Blocks * size, Free: st.Bavail * size, Inodes: st.Files,
		InodeFree: st.Ffree}
	s.Type = cmp.Or(s.Type, fmt.Sprintf("file system %#x", st.Type))
	return s, nil
}

// syncTries is the number of writes of which the median is taken.
const syncTries = 7

func (kernelProbe) SyncTime(path string) (time.Duration, error) {
	d, err := Median(nearestFolder(path), syncTries)
	return d, withoutFileName(err)
}

func (kernelProbe) Firewalls() ([]hostfirewall.Chain, error) { return hostfirewall.Find() }

func (kernelProbe) Wildcards(ctx context.Context, file string) ([]string, error) {
	return resolvconf.Wildcards(ctx, file)
}

func (kernelProbe) Routes() ([]Route, error) {
	routes, err := netlinkutil.Routes(netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []Route
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() || r.Dst.IP.IsMulticast() {
			continue
		}
		name := strconv.Itoa(r.LinkIndex)
		if i, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
			name = i.Name
		}
		addr, _ := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		out = append(out, Route{netip.PrefixFrom(addr.Unmap(), ones), name})
	}
	return out, nil
}

// nearestFolder returns the path itself, if it is a folder, or the nearest existing folder above it.
func nearestFolder(path string) string {
	for {
		if fi, err := os.Stat(path); (err == nil && fi.IsDir()) || path == "/" || path == "." {
			return path
		}
		path = filepath.Dir(path)
	}
}

// withoutFileName removes the name of a temporary file from an error.
func withoutFileName(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
