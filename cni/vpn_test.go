// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// vpnDevice is what a VPN's program has on each of its machines.
const vpnDevice = "tun0"

// vpn is a network of tun devices without link addresses, as VPNs make them: a packet goes to the member whose address
// it is for, and one for another address to none.
type vpn struct {
	t       *testing.T
	mu      sync.Mutex
	members map[netip.Addr]*os.File
	pumps   sync.WaitGroup
}

func newVPN(t *testing.T) *vpn {
	v := &vpn{t: t, members: map[netip.Addr]*os.File{}}
	t.Cleanup(func() {
		v.mu.Lock()
		for _, f := range v.members {
			_ = f.Close()
		}
		v.mu.Unlock()
		v.pumps.Wait()
	})
	return v
}

// join makes the device of one member, with its address; routes lead to the rest. leave takes the device away, as the
// end of the VPN's program does.
func (v *vpn) join(in netns.Doer, address string, mtu int, routes ...string) (leave func()) {
	v.t.Helper()
	var f *os.File
	err := in.Do(func() (err error) {
		if f, err = openTun(vpnDevice); err != nil {
			return err
		}
		l, err := netlink.LinkByName(vpnDevice)
		if err == nil {
			err = errors.Join(netlink.LinkSetMTU(l, mtu), netns.AddAddress(vpnDevice, address)) // which sets it up
		}
		for _, r := range routes {
			if err == nil {
				err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(r))})
			}
		}
		return err
	})
	testenv.Require(v.t, err == nil, "making a VPN's device: %v", err)
	own := netip.MustParsePrefix(address).Addr()
	v.mu.Lock()
	v.members[own] = f
	v.mu.Unlock()
	v.pumps.Go(func() { v.pump(f) })
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.members, own)
		_ = f.Close()
	}
}

// pump ends when the device is closed.
func (v *vpn) pump(f *os.File) {
	packet := make([]byte, 1<<16)
	for {
		n, err := f.Read(packet)
		if err != nil {
			return
		}
		to, ok := destination(packet[:n])
		if !ok {
			continue
		}
		v.mu.Lock()
		other := v.members[to]
		v.mu.Unlock()
		if other != nil {
			_, _ = other.Write(packet[:n]) // it may have left
		}
	}
}

func destination(packet []byte) (netip.Addr, bool) {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return netip.AddrFromSlice(packet[16:20])
	case len(packet) >= 40 && packet[0]>>4 == 6:
		return netip.AddrFromSlice(packet[24:40])
	}
	return netip.Addr{}, false
}

// openTun makes a tun device in the calling thread's namespace.
func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request := struct { // struct ifreq
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte // the rest of its union
	}{flags: unix.IFF_TUN | unix.IFF_NO_PI}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
		_ = unix.Close(fd)
		return nil, errno
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// TestNodesReachOneAnotherOverVPN: nodes that are joined by a VPN alone reach one another through it, whatever networks
// its addresses have.
func TestNodesReachOneAnotherOverVPN(t *testing.T) {
	at4 := func(bits int) func(int) []string {
		return func(i int) []string { return []string{fmt.Sprintf("10.9.0.%d/%d", i, bits)} }
	}
	for _, c := range []struct {
		name   string
		at     func(int) []string
		mtu    int
		routes []string
		pods   int // the size of their packets
	}{
		{"a network", at4(24), 1420, nil, 1370},
		{"single addresses", at4(32), 1420, []string{"10.9.0.0/24"}, 1370},
		{"small", at4(32), 1280, []string{"10.9.0.0/24"}, 1280},
		{"IPv6", func(i int) []string { return []string{fmt.Sprintf("fd99::%d/64", i)} }, 1420, nil, 1350},
	} {
		t.Run(c.name, func(t *testing.T) {
			netns.RequireNFT(t)
			s := &segment{T: t, c: wayCluster{vxlan{}, dualPods, c.at, c.mtu}, device: "tun*"}
			v := newVPN(t)
			for i := 1; i <= 3; i++ {
				ns := netns.New(t)
				testenv.NoError(t, ns.Do(func() error { return onDevice("lo", netlink.LinkSetUp) }))
				v.join(ns, c.at(i)[0], c.mtu, c.routes...)
				s.nodes = append(s.nodes, ns)
			}
			testenv.True(t, s.input(1).mtu == c.pods, "pods' packets have %d bytes, want %d", s.input(1).mtu, c.pods)
			s.passAll()
			s.meets()
			s.wholePackets()
			s.isMended()
			s.c.backend = hostGateway{}
			ways, trouble := s.c.backend.desired(s.input(1))
			if len(ways) > 0 || !slices.ContainsFunc(trouble, func(p unreachablePeer) bool {
				return strings.Contains(p.reason, "host-gw is for nodes of one segment, vxlan for others")
			}) {
				t.Errorf("packets for pods go nowhere by host-gw, and that is said of it: %v; its ways are\n%s", trouble, render(ways, nil))
			}
		})
	}
}

// TestServerRoutesFollowRestartedVPN: a server's ways go by the interface that it was given, with each back end that
// can, and go on when the VPN's program has started again.
func TestServerRoutesFollowRestartedVPN(t *testing.T) {
	const own, other = "10.9.0.1", "10.9.0.2"
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	v := newVPN(t)
	leave := v.join(here{}, own+"/32", 1420, other+"/32")
	v.join(n.outside, other+"/32", 1420, own+"/32")
	n.o.Interface = "tun*"
	peers := n.encrypted(nodeAddr)
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a := n.pod("aaa")
	m := newWGMachine(t, n, false)
	m.nodeAt = own
	m.open(testKey(2))
	serve(t, m.ns, "b", "tcp", ":80")
	serve(t, a, "a", "tcp", ":80")
	peers <- []Peer{m.asPeer(other)}
	both := func(when string) {
		t.Helper()
		reaches(t, a, when+", pod to another node", wgPeerIP+":80", "b "+a.ips[0])
		reaches(t, a, when+", pod to another node by IPv6", "["+wgPeerIP6+"]:80", "b "+a.ips[1])
		reaches(t, m.ns, when+", another node to a pod", a.ips[0]+":80", "a "+wgPeerIP)
	}
	both("first")
	wantMTU(t, 1360)
	converse(t, a, m.ns, wgPeerIP+":81").echo("first")
	testenv.Equal(t, n.server.network.Load().paths.underlay.device, vpnDevice, "the ways go by")

	leave()
	eventually(t, func() error {
		if _, err := netlink.LinkByName(vpnDevice); err == nil {
			return errors.New("the device is still there")
		}
		return nil
	})
	v.join(here{}, own+"/32", 1380, other+"/32")
	both("when the VPN is back")
	wantMTU(t, 1320)
}
