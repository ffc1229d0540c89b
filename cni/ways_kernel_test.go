// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// segment is a network with nodes on it, each in a namespace. A node's pods are its own addresses in its pod networks.
type segment struct {
	*testing.T
	c     wayCluster
	nodes []*netns.NS // the first is number 1
	dead  []int
	// device is each node's for packets to others; the ways follow from what it is. Empty: it is eth0, and as c says.
	device string
}

func newSegment(t *testing.T, c wayCluster, nodes int) *segment {
	netns.RequireNFT(t)
	bridge := netns.NewBridge(t, "segment0", c.mtu)
	s := &segment{T: t, c: c}
	for i := 1; i <= nodes; i++ {
		ns := netns.New(t)
		bridge.Join(t, ns, fmt.Sprint("port", i), c.underlay(i)...)
		s.nodes = append(s.nodes, ns)
	}
	return s
}

func (s *segment) input(i int) pathInput {
	in := waysOf(i, len(s.nodes), s.c)
	if s.device != "" {
		testenv.NoError(s, s.nodes[i-1].Do(func() (err error) { in.underlay, err = findUnderlay(nil, s.device); return err }))
		in.sizes = sizesFor(in.underlay.mtu, in.overhead(s.c.backend), in.podCIDRs)
	}
	in.peers = slices.DeleteFunc(in.peers, func(p Peer) bool {
		return slices.ContainsFunc(s.dead, func(d int) bool { return p.Name == peerOf(d, s.c).Name })
	})
	return in
}

// pass brings a node to what is desired and says what that took.
func (s *segment) pass(i int) (did string) {
	s.Helper()
	in := s.input(i)
	desired := desiredHost(hostInput{bridge: Bridge, mtu: in.mtu, podCIDRs: in.podCIDRs})
	ways, trouble := s.c.backend.desired(in)
	testenv.Require(s, len(trouble) == 0, "%v", trouble)
	testenv.NoError(s, s.nodes[i-1].Do(func() error {
		did = pass(s.T, Bridge, append(desired, ways...))
		rs := desiredRules(in, s.c.backend)
		program, err := newNFT()
		if err != nil {
			return err
		}
		if err := apply(context.Background(), program, rs); err != nil {
			return err
		}
		if have, err := nft.Count(ownTable()); err != nil || !rs.hasCounts(have) {
			return fmt.Errorf("what was just written is not whole: %+v, %w", have, err)
		}
		return nil
	}))
	return did
}

func desiredRules(in pathInput, b backend) ruleset {
	rs := desiredTable(in.podCIDRs, prefixes("10.42.0.0/16", "fd42::/48"), nil, nil, nil)
	b.rules(&rs, in)
	return rs
}

func (s *segment) passAll() {
	s.Helper()
	for i := range s.nodes {
		if !slices.Contains(s.dead, i+1) {
			s.pass(i + 1)
		}
	}
}

// podAddress is a node's own in one of its pod networks.
func (s *segment) podAddress(i, family int) netip.Addr { return gateway(s.c.podCIDRs(i)[family]) }

// meets: each node reaches each by way of their pod networks, and is seen with its address there.
func (s *segment) meets() {
	s.Helper()
	for j, to := range s.nodes {
		for f := range s.c.podCIDRs(j + 1) {
			addr := netip.AddrPortFrom(s.podAddress(j+1, f), 80).String()
			s.Run(fmt.Sprint("to ", addr), func(t *testing.T) {
				serve(t, to, "pod", "tcp", addr)
				for i, from := range s.nodes {
					if i != j {
						want := "pod " + s.podAddress(i+1, f).String()
						eventually(t, func() error {
							if got, err := ask(from, addr); err != nil || got != want {
								return fmt.Errorf("node %d: %q, %v; want %q", i+1, got, err, want)
							}
							return nil
						})
					}
				}
			})
		}
	}
}

// TestRoutesOfEachBackend makes the ways of each back end over each underlay, uses them, sees that nothing is done a
// second time, that what is taken away comes back, and that a node's ways go with it.
func TestRoutesOfEachBackend(t *testing.T) {
	both := func(i int) []string { return append(underlay4(i), underlay6(i)...) }
	for _, c := range []struct {
		name string
		c    wayCluster
	}{
		{"vxlan over IPv4", wayCluster{vxlan{}, dualPods, underlay4, 1500}},
		{"vxlan over IPv6", wayCluster{vxlan{}, dualPods, underlay6, 1400}},
		{"vxlan over IPv4, small", wayCluster{vxlan{}, dualPods, underlay4, 1280}},
		{"vxlan over IPv6, as small as can be", wayCluster{vxlan{}, dualPods, underlay6, minMTU6 + vxlanOverhead6}},
		{"host-gw", wayCluster{hostGateway{}, dualPods, both, 1280}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSegment(t, c.c, 3)
			s.passAll()
			for i := range s.nodes {
				testenv.Equal(t, s.pass(i+1), "", "node %d, done again:", i+1)
			}
			s.meets()
			s.wholePackets()
			s.isMended()
			s.dead = []int{3}
			testenv.Contains(t, s.pass(1), "- route 10.42.3.0/24", "node 3 is gone:")
			s.nothingOf("10.42.3.", "fd42:0:0:3:", "192.0.2.3", "2001:db8::3", vtepMAC(dualPods(3)))
		})
	}
}

// wholePackets: a packet as large as the route takes it, which must not be cut, gets to the other node.
func (s *segment) wholePackets() {
	s.Helper()
	for f, headers := range []int{28, 48} {
		size := s.input(1).mtu
		if w := s.input(1).whole4; f == 0 && w > 0 {
			size = w
		}
		to := netip.AddrPortFrom(s.podAddress(2, f), 9)
		got := make(chan int, 1) // the reader ends whether or not anybody waits
		in := netns.ListenPacket(s, s.nodes[1], "udp", to.String())
		go func() {
			n, _, err := in.ReadFrom(make([]byte, 1<<16))
			if err == nil {
				got <- n + headers
			}
		}()
		eventually(s.T, func() error {
			if err := s.nodes[0].Do(func() error { return sendWhole(to, size-headers) }); err != nil {
				return err
			}
			select {
			case n := <-got:
				if n != size {
					return fmt.Errorf("%d bytes arrived", n)
				}
				return nil
			case <-time.After(time.Second):
				return fmt.Errorf("%d bytes to %s did not arrive", size, to)
			}
		})
		in.Close()
	}
}

// sendWhole sends one datagram that may not be fragmented.
func sendWhole(to netip.AddrPort, payload int) error {
	c, err := net.Dial("udp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	e := raw.Control(func(fd uintptr) {
		if to.Addr().Is4() {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
	})
	if err = errors.Join(e, err); err != nil {
		return err
	}
	_, err = c.Write(make([]byte, payload))
	return err
}

// isMended takes every object of the ways from node 1, one after the other, and sees that a pass makes it again.
func (s *segment) isMended() {
	s.Helper()
	ways, _ := s.c.backend.desired(s.input(1))
	for _, w := range ways {
		if _, ok := w.object.(sysctl); ok {
			continue
		}
		testenv.NoError(s, s.nodes[0].Do(func() error { return newKernel().remove(w.object) }))
		testenv.Contains(s, s.pass(1), w.String(), "%s was removed, and done was", w)
		testenv.Equal(s, s.pass(1), "", "%s was removed and is there again, and then is done", w)
	}
	s.meets()
}

// nothingOf sees that no object of node 1 says any of these.
func (s *segment) nothingOf(words ...string) {
	s.Helper()
	testenv.NoError(s, s.nodes[0].Do(func() error {
		have, err := newKernel().observe(Bridge, nil)
		for _, o := range have {
			for _, w := range words {
				testenv.False(s, strings.Contains(o.String(), w), "%s is left", o)
			}
		}
		return err
	}))
}

// TestBackendChangeRemovesOldRoutes: another back end leaves nothing of the one before, and Cleanup nothing at all.
func TestBackendChangeRemovesOldRoutes(t *testing.T) {
	s := newSegment(t, wayCluster{vxlan{}, dualPods, func(i int) []string { return append(underlay4(i), underlay6(i)...) }, 1500}, 2)
	s.passAll()
	s.meets()
	s.c.backend = hostGateway{}
	s.passAll()
	s.meets()
	s.nothingOf(tunnelPrefix)
	testenv.NoError(t, s.nodes[0].Do(func() error { return Cleanup(CleanupOptions{}) }))
	s.nothingOf("10.42.", "fd42:")
}

// TestTunnelAcceptsOnlyPeersOwnPods: a datagram is taken from a peer alone, and of a peer only packets of its own pods.
func TestTunnelAcceptsOnlyPeersOwnPods(t *testing.T) {
	for _, c := range []struct {
		name     string
		underlay func(int) []string
	}{{"over IPv4", underlay4}, {"over IPv6", underlay6}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSegment(t, wayCluster{vxlan{}, dualPods, c.underlay, 1500}, 4)
			s.dead = []int{4} // a machine on the segment that is no node
			s.passAll()
			for f := range 2 {
				target := s.podAddress(1, f)
				in := netns.ListenPacket(t, s.nodes[0], "udp", netip.AddrPortFrom(target, 7).String())
				type datagram struct {
					from   int
					source netip.Addr
				}
				send := func(d datagram) error {
					text := fmt.Sprintf("from %d as %s", d.from, d.source)
					inner := wrapped(vtepMAC(dualPods(d.from)), vtepMAC(dualPods(1)), d.source, target, text)
					at := netip.AddrPortFrom(peerOf(1, s.c).Underlay[0], 8472).String()
					return netns.SendDatagram(s.nodes[d.from-1], "", at, string(inner))
				}
				for _, d := range []datagram{{4, s.podAddress(2, f)}, {2, s.podAddress(3, f)}, {2, target}, {2, netip.MustParseAddr(map[int]string{0: "8.8.8.8", 1: "2001:db8:9::1"}[f])}} {
					testenv.NoError(t, send(d))
				}
				got := firstHeard(t, in, func() error { return send(datagram{2, s.podAddress(2, f)}) })
				testenv.Equal(t, got, fmt.Sprintf("from 2 as %s", s.podAddress(2, f)), "first arrives")
			}
		})
	}
}

// TestPodsComeByTheTunnel: a machine of the segment speaks from an address of the pods' network that no pod has, to
// which the node's default route leads.
func TestPodsComeByTheTunnel(t *testing.T) {
	s := newSegment(t, wayCluster{vxlan{}, dualPods, underlay4, 1500}, 3)
	s.dead = []int{3} // a machine on the segment that is no node
	s.passAll()
	target, invented := s.podAddress(1, 0), "10.42.77.5"
	node, unknownPeer := peerOf(1, s.c).Underlay[0].String(), peerOf(3, s.c).Underlay[0].String()
	at := netip.AddrPortFrom(target, 7).String()
	in := netns.ListenPacket(t, s.nodes[0], "udp", at)
	err := errors.Join(s.nodes[0].Do(func() error { return netns.AddRoute("0.0.0.0/0", unknownPeer) }), s.nodes[2].Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.AddrAdd(l, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(invented))})
		}
		return errors.Join(err, netns.AddRoute(target.String()+"/32", node))
	}))
	testenv.NoError(t, err)
	first := func() string {
		t.Helper()
		return firstHeard(t, in, func() error {
			return errors.Join(netns.SendDatagram(s.nodes[2], invented, at, invented),
				netns.SendDatagram(s.nodes[2], unknownPeer, at, unknownPeer))
		})
	}
	if got := first(); got != unknownPeer {
		t.Errorf("what says that it is from %s arrived", got)
	}
	testenv.NoError(t, s.nodes[0].Do(func() error { netns.NFT(t, "flush chain inet coracle guard"); return nil }))
	eventually(t, func() error { // there may be some on their way from before
		if got := first(); got != invented {
			return fmt.Errorf("unguarded, %s arrived first: this test proves nothing", got)
		}
		return nil
	})
}

// wrapped is a VXLAN header and a frame with a UDP datagram to port 7.
func wrapped(from, to string, source, dst netip.Addr, text string) []byte {
	out := []byte{0x08, 0, 0, 0, byte(vxlanVNI >> 16), byte(vxlanVNI >> 8 & 0xff), byte(vxlanVNI & 0xff), 0}
	for _, m := range []string{to, from} {
		mac, _ := net.ParseMAC(m) // of our own making
		out = append(out, mac...)
	}
	udp := binary.BigEndian.AppendUint16(nil, 4321)
	udp = binary.BigEndian.AppendUint16(udp, 7)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(binary.BigEndian.AppendUint16(udp, 0), text...)
	if dst.Is6() {
		pseudo := slices.Concat(source.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(len(udp)), 0, 0, 0, 17}, udp)
		binary.BigEndian.PutUint16(udp[6:], netns.Checksum(pseudo))
		out = append(out, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(udp)), 17, 64)
		return slices.Concat(out, source.AsSlice(), dst.AsSlice(), udp)
	}
	ip := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, 17, 0, 0}, source.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], netns.Checksum(ip))
	return slices.Concat(out, []byte{0x08, 0x00}, ip, udp)
}

// TestChecksumsOfAnAdministrator: what `ethtool -K coracle-vxlan tx-checksum-ip-generic off` did stays, and is no other
// program's harm.
func TestChecksumsOfAnAdministrator(t *testing.T) {
	s := newSegment(t, wayCluster{vxlan{}, dualPods, underlay4, 1500}, 2)
	s.passAll()
	testenv.NoError(t, s.nodes[0].Do(func() error { return disableTxChecksumOffload(deviceVXLAN4) }))
	for range 2 {
		testenv.Equal(t, s.pass(1), "", "there is nothing to do, and done was")
	}
	testenv.Check(t, s.nodes[0].Do(func() error {
		software, err := sendsSoftwareChecksums(deviceVXLAN4)
		if err == nil && !software {
			err = errors.New("the device leaves checksums to others again")
		}
		return err
	}))
	s.meets()
}

// TestDeviceLeavesChecksumsToTheProcessor: the device leaves checksums to the processor where it is set to, and says
// so. To ask it takes no megabytes: nodes do so twice a minute.
func TestDeviceLeavesChecksumsToTheProcessor(t *testing.T) {
	s := newSegment(t, wayCluster{vxlan{}, dualPods, underlay4, 1500}, 2)
	s.passAll()
	want := checksums{deviceVXLAN4}
	err := s.nodes[0].Do(func() error {
		if have, err := newKernel().observe(Bridge, nil); err != nil || have[want.id()] != nil {
			t.Errorf("it was given nothing yet: %v, %v", have, err)
		}
		least := uint64(math.MaxUint64) // of several times: other goroutines of the process allocate too
		for range 5 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			software, err := sendsSoftwareChecksums(deviceVXLAN4)
			runtime.ReadMemStats(&after)
			testenv.False(t, software || err != nil, "by software: %v, %v", software, err)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
		}
		testenv.True(t, least <= 64<<10, "%d bytes to ask", least)
		testenv.Fails(t, testenv.Err(sendsSoftwareChecksums("none")), "a device that is not there answers")
		if err := newKernel().ensure(want); err != nil {
			return err
		}
		have, err := newKernel().observe(Bridge, nil)
		if _, ok := have[want.id()]; !ok {
			t.Errorf("it is not as configured: %v", have)
		}
		return err
	})
	testenv.NoError(t, err)
	s.meets()
}

func TestDriversWithBadChecksumsAreDetected(t *testing.T) {
	class := t.TempDir()
	for _, dir := range []string{"vm0/device", "eth0/device", "bond0/lower_eth0", "bond0/lower_vm0"} {
		testenv.NoError(t, os.MkdirAll(class+"/"+dir, 0o755))
	}
	for device, driver := range map[string]string{"vm0": "vmxnet3", "eth0": "virtio_net"} {
		testenv.NoError(t, os.Symlink("../../bus/"+driver, class+"/"+device+"/device/driver"))
	}
	for _, c := range []struct {
		release, device string
		want            bool
	}{
		{"4.19.0-27-amd64", "eth0", true}, {"5.6.19", "eth0", true}, {"5.7.0", "eth0", false}, {"6.12.25+rpt-rpi-v8", "eth0", false},
		{"6.1.0", "vm0", true}, {"6.1.0", "bond0", true}, {"6.1.0", "", false}, {"unknown", "eth0", false},
	} {
		testenv.Equal(t, badChecksums(c.release, class, c.device), c.want, "kernel %s, %s:", c.release, c.device)
	}
}
