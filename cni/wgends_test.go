// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// wgMachine is another node's end of the tunnel, in a namespace of its own.
type wgMachine struct {
	t         *testing.T
	ns        *netns.NS
	dev       *wgDevice
	node      string // the public key of the node under test
	nodeAt    string // and its address
	inProcess bool   // wireguard-go encrypts, though the kernel may have WireGuard
}

const (
	wgPeerIP  = "10.42.8.1"
	wgPeerIP6 = "fd42:0:0:8::1"
)

// newWGMachine answers at the first addresses of 10.42.8.0/24 and fd42:0:0:8::/64.
func newWGMachine(t *testing.T, n *node, inProcess bool) *wgMachine {
	t.Helper()
	key := testKey(2)
	m := &wgMachine{
		t: t, ns: n.outside, dev: newWGDevice(wireGuardDevice, key, ktesting.NewLogger(t, ktesting.NewConfig())),
		node: n.server.WireGuardKey(), nodeAt: n.o.NodeIPs[0].String(), inProcess: inProcess,
	}
	t.Cleanup(m.dev.close)
	m.open(key)
	return m
}

func (m *wgMachine) do(f func() error) {
	m.t.Helper()
	testenv.NoError(m.t, m.ns.Do(f))
}

// open makes the tunnel with a key, in place of an earlier one.
func (m *wgMachine) open(key wgtypes.Key) {
	m.t.Helper()
	m.dev.close()
	m.dev.key = key
	m.do(func() error {
		if err := removeDevice(wireGuardDevice); err != nil { // the kernel's goes on
			return err
		}
		if err := m.make(); err != nil {
			return err
		}
		return onDevice(wireGuardDevice, func(l netlink.Link) error {
			for _, ip := range []string{wgPeerIP, wgPeerIP6} {
				if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(ip)), Flags: unix.IFA_F_NODAD}); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			for _, c := range prefixes("10.42.7.0/24", "fd42:0:0:7::/64") {
				if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(c)}); err != nil {
					return err
				}
			}
			return nil
		})
	})
	m.peer(m.node, 0)
}

func (m *wgMachine) make() (err error) {
	if !m.inProcess {
		return m.dev.make(1420)
	}
	clear(m.dev.lastSet)
	m.dev.user, err = openWGUser(wireGuardDevice, 1420, m.dev.identity(), m.dev.log)
	return err
}

// peer tells the machine of the node under test.
func (m *wgMachine) peer(key string, keepalive int) {
	m.t.Helper()
	m.node = key
	m.do(func() error {
		return m.dev.ensurePeer(wgPeer{
			device: wireGuardDevice, key: key, endpoint: netip.AddrPortFrom(netip.MustParseAddr(m.nodeAt), clusterconfig.WireGuardPort),
			allowed: "10.42.7.0/24,fd42:0:0:7::/64", keepalive: keepalive,
		})
	})
}

func (m *wgMachine) asPeer(underlay string) Peer {
	return Peer{
		Name: "b", PodCIDRs: prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), WireGuardKey: m.dev.key.PublicKey().String(),
		Underlay: []netip.Addr{netip.MustParseAddr(underlay)},
	}
}

// encrypted makes the node one that encrypts, at one of its addresses. Its peers come by the channel.
func (n *node) encrypted(at string) chan []Peer {
	n.t.Helper()
	n.stop()
	peers := make(chan []Peer, 1)
	n.o.Backend, n.o.Peers, n.o.NodeIPs = clusterconfig.NetworkWireGuard, peers, []netip.Addr{netip.MustParseAddr(at)}
	n.start()
	return peers
}

// reaches waits until a connection gets through: a handshake that was lost is tried again after five seconds.
func reaches(t *testing.T, from netns.Doer, what, addr, want string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, what, func() error {
		got, err := ask(from, addr)
		if err == nil && got != want {
			err = fmt.Errorf("%s says %q, want %q", addr, got, want)
		}
		return err
	})
}

// spy counts what arrives in a namespace with addresses of pods that the whole world can read.
func spy(t *testing.T, ns netns.Doer) (plain func() string) {
	t.Helper()
	run := func(args ...string) (out string) {
		testenv.NoError(t, ns.Do(func() error { out = netns.NFT(t, args...); return nil }))
		return out
	}
	run(`add table inet spy; add chain inet spy plain; add rule inet spy plain counter; add chain inet spy pre { type filter hook prerouting priority -400; };
add rule inet spy pre iifname "eth0" ip daddr 10.42.0.0/16 goto plain; add rule inet spy pre iifname "eth0" ip6 daddr fd42::/56 goto plain;
add rule inet spy pre iifname "eth0" ip saddr 10.42.0.0/16 goto plain; add rule inet spy pre iifname "eth0" ip6 saddr fd42::/56 goto plain`)
	return func() string {
		_, after, _ := strings.Cut(run("list chain inet spy plain"), "packets ")
		number, _, _ := strings.Cut(after, " ")
		return number
	}
}

// kernelHasWireGuard asks the kernel itself. A guest's has it.
func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	err := netns.New(t).Do(func() error { return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}) })
	if err != nil && (uml.Inside() || !errors.Is(err, unix.EOPNOTSUPP)) {
		t.Fatal("making a WireGuard device:", err)
	}
	return err == nil
}

// kindOf is the kernel's word for what the device is.
func kindOf(in netns.Doer, device string) (kind string) {
	err := in.Do(func() error {
		return onDevice(device, func(l netlink.Link) error {
			kind = l.Type()
			return nil
		})
	})
	if err != nil {
		return err.Error()
	}
	return kind
}

// wantEncryptor fails unless the tunnel's device there is the kernel's, or unless it is wireguard-go's.
func wantEncryptor(t *testing.T, in netns.Doer, dev *wgDevice, kernel bool) {
	t.Helper()
	want := map[bool]string{true: kindWireGuard, false: "tuntap"}[kernel]
	dev.mu.Lock()
	inProcess := dev.user != nil
	dev.mu.Unlock()
	if got := kindOf(in, dev.name); got != want || inProcess == kernel {
		t.Fatalf("the device %s is %s, and wireguard-go runs for it: %t; want %s", dev.name, got, inProcess, want)
	}
}

func (m *wgMachine) encryptedBy(kernel bool) {
	m.t.Helper()
	wantEncryptor(m.t, m.ns, m.dev, kernel)
}

// encryptedBy fails unless the kernel encrypts for the node, or wireguard-go does, and the log of this run says so.
func (n *node) encryptedBy(kernel bool) {
	n.t.Helper()
	wantEncryptor(n.t, here{}, n.server.wg, kernel)
	words := map[bool]string{true: "The kernel encrypts packets", false: "wireguard-go encrypts packets"}
	if log := n.log(); !strings.Contains(log, words[kernel]) || strings.Contains(log, words[!kernel]) {
		n.t.Fatalf("the log has to say %q, and not the other; it says\n%s", words[kernel], log)
	}
}

// log is what the node has said since its start.
func (n *node) log() string {
	return n.o.Logger.GetSink().(ktesting.Underlier).GetBuffer().String()
}

func wantMTU(t *testing.T, want int) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "the MTU is as it should be", func() error {
		return onDevice(wireGuardDevice, func(l netlink.Link) error {
			if got := l.Attrs().MTU; got != want {
				return fmt.Errorf("the MTU of %s is %d, want %d", wireGuardDevice, got, want)
			}
			return nil
		})
	})
}

func deviceIndex(t *testing.T) (index int) {
	t.Helper()
	testenv.NoError(t, onDevice(wireGuardDevice, func(l netlink.Link) error {
		index = l.Attrs().Index
		return nil
	}))
	return index
}

// disturb does what another program might: it gives the device another key, and removes a peer.
func (n *node) disturb(key wgtypes.Key, peer wgtypes.Key) {
	n.t.Helper()
	d := n.server.wg
	d.mu.Lock()
	defer d.mu.Unlock()
	testenv.NoError(n.t, d.configureLocked(wgtypes.Config{PrivateKey: &key, Peers: []wgtypes.PeerConfig{{PublicKey: peer, Remove: true}}}))
}

// conversation is a connection that stays open. The other end says what it hears.
type conversation struct {
	t *testing.T
	c net.Conn
}

func converse(t *testing.T, from, to netns.Doer, addr string) *conversation {
	t.Helper()
	netns.Echo(t, to, "", "tcp", addr)
	out := &conversation{t: t}
	err := from.Do(func() (err error) { out.c, err = net.DialTimeout("tcp", addr, 2*time.Minute); return err })
	t.Cleanup(func() {
		if out.c != nil {
			_ = out.c.Close()
		}
	})
	testenv.NoError(t, err)
	return out
}

// echo sends packets of all sizes up to the largest, and waits until they are back.
func (c *conversation) echo(when string) {
	c.t.Helper()
	_ = c.c.SetDeadline(time.Now().Add(2 * time.Minute))
	for size := 1; size <= 16<<10; size *= 2 {
		sent, back := bytes.Repeat([]byte{byte(size>>3) | 1}, size), make([]byte, size)
		_, err := c.c.Write(sent)
		if err == nil {
			_, err = io.ReadFull(c.c, back)
		}
		testenv.Require(c.t, err == nil && bytes.Equal(sent, back), "%s, an open connection, %d bytes: %v", when, size, err)
	}
}
