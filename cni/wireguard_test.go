// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testKey is a key that is as good as any.
func testKey(n byte) wgtypes.Key {
	var k wgtypes.Key
	k[0], k[31] = n<<3, 64
	return k
}

// publicKey is testKey's public one.
func publicKey(n byte) string { return testKey(n).PublicKey().String() }

func TestDesiredWireGuardRendersPeers(t *testing.T) {
	names := strings.NewReplacer(publicKey(1), "OWN", publicKey(2), "KEY2", publicKey(3), "KEY3")
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, s := range texts {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	peer := func(name, key string, cidrs []netip.Prefix, underlay ...string) Peer {
		return Peer{Name: name, WireGuardKey: key, PodCIDRs: cidrs, Underlay: addrs(underlay...)}
	}
	b4, b6, c4 := prefixes("10.42.8.0/24"), prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), prefixes("10.42.9.0/24")
	const own = `
blackhole 10.42.0.0/16
link coracle-wg wireguard mtu 1440 up
address 10.42.7.0 dev coracle-wg
wireguard dev coracle-wg key OWN port 51820
`
	for _, c := range []struct {
		name     string
		underlay string
		cidrs    []netip.Prefix
		peers    []Peer
		want     string
		trouble  []unreachablePeer
	}{
		{"alone", "192.168.1.2/24", prefixes("10.42.7.0/24"), nil, own, nil},
		{"on one segment", "192.168.1.2/24", prefixes("10.42.7.0/24"), []Peer{peer("b", publicKey(2), b4, "192.168.1.3")}, own + `
wireguard peer KEY2 dev coracle-wg endpoint 192.168.1.3:51820 allowed 10.42.8.0/24
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
`, nil},
		{"both behind routers", "192.168.1.2/24", prefixes("10.42.7.0/24"), []Peer{peer("b", publicKey(2), b4, "10.0.0.3")}, own + `
wireguard peer KEY2 dev coracle-wg endpoint 10.0.0.3:51820 allowed 10.42.8.0/24
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
`, nil},
		{"this one behind a translator", "192.168.1.2/24", prefixes("10.42.7.0/24"), []Peer{peer("b", publicKey(2), b4, "203.0.113.3")}, own + `
wireguard peer KEY2 dev coracle-wg endpoint 203.0.113.3:51820 allowed 10.42.8.0/24 keepalive 25
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
`, nil},
		{"that one behind a translator, and another", "203.0.113.2/24", prefixes("10.42.7.0/24"),
			[]Peer{peer("b", publicKey(2), b4, "100.64.0.3"), peer("c", publicKey(3), c4, "198.51.100.7")}, own + `
wireguard peer KEY2 dev coracle-wg allowed 10.42.8.0/24
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
wireguard peer KEY3 dev coracle-wg endpoint 198.51.100.7:51820 allowed 10.42.9.0/24
route 10.42.9.0/24 dev coracle-wg src 10.42.7.1
`, nil},
		{"both families on an underlay of IPv6", "2001:db8::2/64", prefixes("10.42.7.0/24", "fd42:0:0:7::/64"), []Peer{peer("b", publicKey(2), b6, "2001:db8::3")}, `
blackhole 10.42.0.0/16
blackhole fd42::/56
link coracle-wg wireguard mtu 1440 up
address 10.42.7.0 dev coracle-wg
address fd42:0:0:7:: dev coracle-wg
wireguard dev coracle-wg key OWN port 51820
wireguard peer KEY2 dev coracle-wg endpoint [2001:db8::3]:51820 allowed 10.42.8.0/24,fd42:0:0:8::/64
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
route fd42:0:0:8::/64 dev coracle-wg src fd42:0:0:7::1
`, nil},
		{"no address in common: it may find us", "192.168.1.2/24", prefixes("10.42.7.0/24"), []Peer{peer("b", publicKey(2), b4, "2001:db8::3")}, own + `
wireguard peer KEY2 dev coracle-wg allowed 10.42.8.0/24
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
`, nil},
		{"keys that cannot be", "192.168.1.2/24", prefixes("10.42.7.0/24"), []Peer{
			peer("none", "", b4, "192.168.1.3"), peer("short", "AAAA", b4, "192.168.1.3"),
			peer("b", publicKey(2), b4, "192.168.1.3"), peer("thief", publicKey(2), c4, "192.168.1.4"), peer("ours", publicKey(1), c4, "192.168.1.4"),
			peer("other-words", otherWords(publicKey(2)), c4, "192.168.1.4"),
		}, own + `
wireguard peer KEY2 dev coracle-wg endpoint 192.168.1.3:51820 allowed 10.42.8.0/24
route 10.42.8.0/24 dev coracle-wg src 10.42.7.1
`, []unreachablePeer{
			{"none", "it has not said its WireGuard key: its coracle is not running, or has another --network-backend"},
			{"short", "its WireGuard key is none: wgtypes: incorrect key size: 3"},
			{"thief", "its WireGuard key is that of b"},
			{"ours", "its WireGuard key is that of this node"},
			{"other-words", "its WireGuard key is that of b"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := pathInput{podCIDRs: c.cidrs, peers: c.peers, underlay: underlay{device: "eth0", mtu: 1500, addresses: prefixes(c.underlay)}, sizes: sizes{mtu: 1440}}
			in.underlay.addresses[0] = netip.MustParsePrefix(c.underlay)
			out, trouble := wireGuard{publicKey(1), prefixes("10.42.0.0/16", "fd42::/56")}.desired(in)
			var got []string
			for _, w := range out {
				got = append(got, names.Replace(w.String()))
			}
			if g, w := strings.Join(got, "\n"), strings.TrimSpace(strings.ReplaceAll(c.want, "\n\n", "\n")); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
			testenv.True(t, fmt.Sprint(trouble) == fmt.Sprint(c.trouble), "trouble: got %v, want %v", trouble, c.trouble)
		})
	}
}

// TestPersistentKeepaliveFollowsAddresses: who waits for whom follows from the addresses at which both are found.
func TestPersistentKeepaliveFollowsAddresses(t *testing.T) {
	const away, home, other = "203.0.113.3", "203.0.113.2", "10.0.0.3"
	for _, c := range []struct {
		name, own, external, peerAddrs string
		want                           string
		keepalive                      int
	}{
		{"this one is found at a translator's, which may send from another port", "192.168.1.2/24", home, away, away + ":51820", keepalive},
		{"this one has its external address itself", home + "/24", home, away, away + ":51820", 0},
		{"this one is not", "192.168.1.2/24", "", away, away + ":51820", keepalive},
		{"that one is found nowhere", "192.168.1.2/24", home, other, "invalid AddrPort", 0},
		{"that one is beside this one, and does not know", "192.168.1.2/24", home, "192.168.1.3", "192.168.1.3:51820", keepalive},
		{"both translators are within a larger network", "192.168.1.2/24", "10.1.0.2", other, other + ":51820", keepalive},
		{"the translator's is of another family", "192.168.1.2/24", "2001:db8::2", away, away + ":51820", keepalive},
	} {
		in := pathInput{underlay: underlay{device: "eth0", addresses: []netip.Prefix{netip.MustParsePrefix(c.own)}}}
		if c.external != "" {
			in.external = []netip.Addr{netip.MustParseAddr(c.external)}
		}
		at, every := endpoint(in, Peer{Underlay: []netip.Addr{netip.MustParseAddr(c.peerAddrs)}})
		testenv.True(t, at.String() == c.want && every == c.keepalive,
			"%s: %s, every %d s; want %s, %d", c.name, at, every, c.want, c.keepalive)
	}
}

// otherWords writes a key in another way that means the same: two bits of base64 are not used.
func otherWords(key string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	last := strings.IndexByte(alphabet, key[42])
	return key[:42] + alphabet[last^1:last^1+1] + "="
}

func TestWireGuardKeyIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first := testenv.Must(wireGuardKey(dir, klog.Background()))(t)
	path := filepath.Join(dir, wireGuardKeyFile)
	info, err := os.Stat(path)
	testenv.False(t, err != nil || info.Mode() != 0o600, "the key's file: %v, %v; want mode 0600", info, err)
	testenv.Equal(t, testenv.Must(wireGuardKey(dir, klog.Background()))(t), first, "the second time the key is")
	testenv.NoError(t, os.WriteFile(path, []byte("half a k"), 0o600))
	other, err := wireGuardKey(dir, klog.Background())
	testenv.False(t, err != nil || other == first || other == (wgtypes.Key{}), "after damage the key is %v, %v; want a new one", other, err)
}

func TestWireGuard(t *testing.T) { testWireGuard(t, false) }

// testWireGuard has the other node's end in this process if otherInProcess says so, and else with whom the node's is.
func testWireGuard(t *testing.T, otherInProcess bool) {
	kernel := kernelHasWireGuard(t)
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	peers := n.encrypted(nodeAddr)
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a := n.pod("aaa")
	m := newWGMachine(t, n, otherInProcess)
	plain := spy(t, n.outside)
	serve(t, m.ns, "b", "tcp", ":80")
	serve(t, a, "a", "tcp", ":80")
	peers <- []Peer{m.asPeer(outsideAddr)}

	both := func(when string) {
		t.Helper()
		reaches(t, a, when+", pod to another node", wgPeerIP+":80", "b "+a.ips[0])
		reaches(t, a, when+", pod to another node by IPv6", "["+wgPeerIP6+"]:80", "b "+a.ips[1])
		reaches(t, here{}, when+", node to another node's pod", wgPeerIP+":80", "b 10.42.7.1")
		reaches(t, m.ns, when+", another node to a pod", a.ips[0]+":80", "a "+wgPeerIP)
	}
	both("first")
	n.encryptedBy(kernel)
	m.encryptedBy(kernel && !otherInProcess)
	wantMTU(t, 1440)
	open := converse(t, a, m.ns, wgPeerIP+":81")
	open.echo("first")

	// The key and with it the way outlive the process; while it is away nothing leaves in the clear.
	key, device := n.server.WireGuardKey(), deviceIndex(t)
	n.stop()
	if kernel {
		both("while coracle is stopped")
		open.echo("while coracle is stopped")
	} else {
		refuse(t, a, "a pod while the tunnel is away", wgPeerIP+":80")
		refuse(t, here{}, "the node while the tunnel is away", wgPeerIP+":80")
	}
	peers = make(chan []Peer, 1)
	n.o.Peers = peers
	n.start()
	testenv.Until(t, 2*time.Minute, "the network is set up again", n.server.Ready)
	testenv.Equal(t, n.server.WireGuardKey(), key, "after a restart the key is")
	n.encryptedBy(kernel)
	if got := deviceIndex(t); (got == device) != kernel {
		t.Errorf("after a restart the device has index %d, had %d; the kernel's: %t", got, device, kernel)
	}
	both("after a restart")
	open.echo("after a restart")

	m.open(testKey(3))
	peers <- []Peer{m.asPeer(outsideAddr)}
	both("after the other node's key changed")

	testenv.NoError(t, removeDevice(wireGuardDevice))
	both("after another program removed the device")
	n.encryptedBy(kernel)
	testenv.NoError(t,
		onDevice(wireGuardDevice, func(l netlink.Link) error { return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetMTU(l, 1300)) }))
	both("after another program set the device down and changed its MTU")
	wantMTU(t, 1440)
	n.disturb(testKey(9), m.dev.key.PublicKey())
	both("after another program changed the key and removed the peer")

	testenv.Equal(t, plain(), "0", "packets of pods were on the wire in the clear:")

	// A node that goes takes its way along.
	peers <- []Peer{}
	testenv.Eventually(t, 2*time.Minute, "the peer is removed", func() error {
		have, err := n.observeAll()
		for id := range have {
			if strings.HasPrefix(id, "wireguard peer") || strings.HasPrefix(id, "route 10.42.8.") {
				err = errors.Join(err, fmt.Errorf("there is still %s", id))
			}
		}
		return err
	})

	// That the counter counts: without the blackhole a packet for a pod that no node has leaves by the default route.
	n.stop()
	testenv.NoError(t, netlink.RouteDel(blackhole{netip.MustParsePrefix("10.42.0.0/16")}.route()))
	testenv.Eventually(t, 2*time.Minute, "a packet in the clear is counted", func() error {
		c, err := net.Dial("udp", wgPeerIP+":9")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		if plain() == "0" {
			return errors.New("none yet: this test proves nothing")
		}
		return nil
	})
}

// observeAll reads the host's side with the tunnel's.
func (n *node) observeAll() (map[string]object, error) {
	k := newKernel()
	k.wg = n.server.wg
	return k.observe(Bridge, nil)
}

func TestWireGuardOverIPv6(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	peers := n.encrypted(nodeAddr6)
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a := n.pod("aaa")
	m := newWGMachine(t, n, false)
	serve(t, m.ns, "b", "tcp", ":80")
	serve(t, a, "a", "tcp", ":80")
	peers <- []Peer{m.asPeer(outAddr6)}
	reaches(t, a, "pod to another node", wgPeerIP+":80", "b "+a.ips[0])
	reaches(t, a, "pod to another node by IPv6", "["+wgPeerIP6+"]:80", "b "+a.ips[1])
	reaches(t, m.ns, "another node to a pod", a.ips[0]+":80", "a "+wgPeerIP)
	reaches(t, m.ns, "another node to a pod by IPv6", "["+a.ips[1]+"]:80", "a "+wgPeerIP6)
	n.encryptedBy(kernelHasWireGuard(t))
	wantMTU(t, 1420)
	converse(t, a, m.ns, wgPeerIP+":81").echo("by IPv4")
	converse(t, a, m.ns, "["+wgPeerIP6+"]:81").echo("by IPv6")
}

// TestWireGuardForgedPackets: what comes by the underlay in the clear and says that a pod had sent it goes nowhere.
func TestWireGuardForgedPackets(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.encrypted(nodeAddr)
	n.ready("10.42.7.0/24")
	a := n.pod("aaa")
	inbox := netns.ListenPacket(t, a, "udp", a.ips[0]+":5000")
	testenv.NoError(t, n.outside.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(wgPeerIP))}); err != nil {
			return err
		}
		return netns.AddRoute("10.42.7.0/24", nodeAddr)
	}))
	got := firstHeard(t, inbox, func() (err error) {
		for _, from := range []string{wgPeerIP, outsideAddr} { // the second is not what this is about: the LAN may speak to pods
			err = errors.Join(err, netns.SendDatagram(n.outside, from, a.ips[0]+":5000", from))
		}
		return err
	})
	testenv.Equal(t, got, outsideAddr, "the first packet that arrives is from")
	n.encryptedBy(kernelHasWireGuard(t))
}
