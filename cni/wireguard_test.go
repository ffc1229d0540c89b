// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/cluster"
	"github.com/coracle-k8s/coracle/internal/nstest"
	"github.com/coracle-k8s/coracle/internal/testenv"
)

// testKey is a key that is as good as any.
func testKey(n byte) wgtypes.Key {
	var k wgtypes.Key
	k[0], k[31] = n<<3, 64
	return k
}

// publicKey is testKey's public one.
func publicKey(n byte) string { return testKey(n).PublicKey().String() }

func TestDesiredWireGuard(t *testing.T) {
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
		trouble  []peerTrouble
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
`, []peerTrouble{
			{"none", "it has not said its WireGuard key: its coracle is not running, or has another --network-backend"},
			{"short", "its WireGuard key is none: wgtypes: incorrect key size: 3"},
			{"thief", "its WireGuard key is that of b"},
			{"ours", "its WireGuard key is that of this node"},
			{"other-words", "its WireGuard key is that of b"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := waysInput{podCIDRs: c.cidrs, peers: c.peers, underlay: underlay{"eth0", 1500, prefixes(c.underlay)}, sizes: sizes{mtu: 1440}}
			in.underlay.addresses[0] = netip.MustParsePrefix(c.underlay)
			out, trouble := wireGuard{publicKey(1), prefixes("10.42.0.0/16", "fd42::/56")}.desired(in)
			var got []string
			for _, w := range out {
				got = append(got, names.Replace(w.String()))
			}
			if g, w := strings.Join(got, "\n"), strings.TrimSpace(strings.ReplaceAll(c.want, "\n\n", "\n")); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
			if fmt.Sprint(trouble) != fmt.Sprint(c.trouble) {
				t.Errorf("trouble: got %v, want %v", trouble, c.trouble)
			}
		})
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
	first, err := wireGuardKey(dir, klog.Background())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, wireGuardKeyFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the key's file: %v, %v; want mode 0600", info, err)
	}
	again, err := wireGuardKey(dir, klog.Background())
	if err != nil || again != first {
		t.Errorf("the second time another key, or %v", err)
	}
	if err := os.WriteFile(path, []byte("half a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := wireGuardKey(dir, klog.Background())
	if err != nil || other == first || other == (wgtypes.Key{}) {
		t.Errorf("after damage the key is %v, %v; want a new one", other, err)
	}
}

// wgMachine is another node's end of the tunnel, in a namespace of its own.
type wgMachine struct {
	t    *testing.T
	ns   *nstest.NS
	dev  *wgDevice
	key  wgtypes.Key
	node string // the other side's public key
}

const (
	wgPeerIP  = "10.42.8.1"
	wgPeerIP6 = "fd42:0:0:8::1"
)

// newWGMachine answers at the first addresses of 10.42.8.0/24 and fd42:0:0:8::/64.
func newWGMachine(t *testing.T, ns *nstest.NS, key wgtypes.Key, node string) *wgMachine {
	t.Helper()
	m := &wgMachine{t, ns, newWGDevice(wireGuardDevice, key, ktesting.NewLogger(t, ktesting.NewConfig())), key, node}
	t.Cleanup(m.dev.close)
	m.open(key)
	return m
}

func (m *wgMachine) do(f func() error) {
	m.t.Helper()
	if err := m.ns.Do(f); err != nil {
		m.t.Fatal(err)
	}
}

// open makes the tunnel with a key, anew if there was one.
func (m *wgMachine) open(key wgtypes.Key) {
	m.t.Helper()
	m.dev.close()
	m.dev.key = key
	m.do(func() error {
		if err := m.dev.make(1420); err != nil {
			return err
		}
		return onDevice(wireGuardDevice, func(l netlink.Link) error {
			for _, ip := range []string{wgPeerIP, wgPeerIP6} {
				if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(ip))}); err != nil {
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

// peer tells the machine of the node under test.
func (m *wgMachine) peer(key string, keepalive int) {
	m.t.Helper()
	m.node = key
	m.do(func() error {
		return m.dev.ensurePeer(wgPeer{
			device: wireGuardDevice, key: key, endpoint: netip.AddrPortFrom(netip.MustParseAddr(nodeAddr), cluster.WireGuardPort),
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

// encrypted makes the node one that encrypts. Its peers come by the channel.
func (n *node) encrypted() chan []Peer {
	n.t.Helper()
	n.stop()
	peers := make(chan []Peer, 1)
	n.o.Backend, n.o.Peers, n.o.NodeIPs = cluster.NetworkWireGuard, peers, []netip.Addr{netip.MustParseAddr(nodeAddr)}
	n.start()
	return peers
}

// reaches waits until a connection gets through: a handshake that was lost is tried again after five seconds.
func reaches(t *testing.T, from nstest.Doer, what, addr, want string) {
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
func spy(t *testing.T, ns nstest.Doer) (plain func() string) {
	t.Helper()
	run := func(args ...string) (out string) {
		if err := ns.Do(func() error {
			b, err := exec.Command("nft", args...).CombinedOutput()
			out = string(b)
			return err
		}); err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
		return out
	}
	run(`add table inet spy; add counter inet spy plain; add chain inet spy pre { type filter hook prerouting priority -400; };
add rule inet spy pre iifname "eth0" ip daddr 10.42.0.0/16 counter name plain; add rule inet spy pre iifname "eth0" ip6 daddr fd42::/56 counter name plain;
add rule inet spy pre iifname "eth0" ip saddr 10.42.0.0/16 counter name plain; add rule inet spy pre iifname "eth0" ip6 saddr fd42::/56 counter name plain`)
	return func() string {
		_, after, _ := strings.Cut(run("list counter inet spy plain"), "packets ")
		number, _, _ := strings.Cut(after, " ")
		return number
	}
}

func TestWireGuard(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	peers := n.encrypted()
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a := n.pod("aaa")
	m := newWGMachine(t, n.outside, testKey(2), n.server.WireGuardKey())
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

	// The key and with it the way outlive the process; while it is away nothing leaves in the clear.
	key := n.server.WireGuardKey()
	n.stop()
	if _, err := netlink.LinkByName(wireGuardDevice); err == nil {
		t.Log("the kernel has WireGuard: its device goes on")
	} else {
		refuse(t, a, "a pod while the tunnel is away", wgPeerIP+":80")
		refuse(t, here{}, "the node while the tunnel is away", wgPeerIP+":80")
	}
	peers = make(chan []Peer, 1)
	n.o.Peers = peers
	n.start()
	n.waitReady()
	if got := n.server.WireGuardKey(); got != key {
		t.Errorf("after a restart the key is %s, was %s", got, key)
	}
	both("after a restart")

	m.open(testKey(3))
	peers <- []Peer{m.asPeer(outsideAddr)}
	both("after the other node's key changed")

	if err := removeDevice(wireGuardDevice); err != nil {
		t.Fatal(err)
	}
	both("after another program removed the device")
	if err := onDevice(wireGuardDevice, netlink.LinkSetDown); err != nil {
		t.Fatal(err)
	}
	both("after another program set the device down")

	if got := plain(); got != "0" {
		t.Errorf("%s packets of pods were on the wire in the clear", got)
	}

	// A node that goes takes its way along.
	peers <- []Peer{}
	testenv.Eventually(t, time.Minute, "the peer is removed", func() error {
		have, err := n.observeAll()
		for id := range have {
			if strings.HasPrefix(id, "wireguard peer") || strings.HasPrefix(id, "route 10.42.8.") {
				err = errors.Join(err, fmt.Errorf("there is still %s", id))
			}
		}
		return err
	})

	// That the counter counts: without the blackhole a packet for a pod that nobody has leaves by the default route.
	n.stop()
	if err := netlink.RouteDel(blackhole{netip.MustParsePrefix("10.42.0.0/16")}.route()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "a packet in the clear is counted", func() error {
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

// TestWireGuardForgedPackets: what comes by the underlay in the clear and says that a pod had sent it goes nowhere.
func TestWireGuardForgedPackets(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.encrypted()
	n.ready("10.42.7.0/24")
	a := n.pod("aaa")
	var inbox net.PacketConn
	if err := a.Do(func() (err error) { inbox, err = net.ListenPacket("udp", a.ips[0]+":5000"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inbox.Close() }()
	if err := n.outside.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(wgPeerIP))}); err != nil {
			return err
		}
		return nstest.AddRoute("10.42.7.0/24", nodeAddr)
	}); err != nil {
		t.Fatal(err)
	}
	send := func(from string) {
		t.Helper()
		if err := n.outside.Do(func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(a.ips[0]), Port: 5000})
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("x"))
			return errors.Join(err, c.Close())
		}); err != nil {
			t.Fatal(err)
		}
	}
	send(wgPeerIP)
	send(outsideAddr) // which is not what this is about: the LAN may speak to pods
	_ = inbox.SetReadDeadline(time.Now().Add(time.Minute))
	_, from, err := inbox.ReadFrom(make([]byte, 1))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(from.String(), outsideAddr+":") {
		t.Errorf("a packet arrived that says %s had sent it", from)
	}
}

// TestWireGuardFollowsATranslatedPeer: a peer whose address is private is waited for, and followed when its translator gives it another one.
func TestWireGuardFollowsATranslatedPeer(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	peers := n.encrypted()
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a := n.pod("aaa")
	m := newWGMachine(t, n.outside, testKey(2), n.server.WireGuardKey())
	m.peer(m.node, 1) // once a second instead of every 25, so that nobody waits for that long
	serve(t, m.ns, "b", "tcp", ":80")
	serve(t, a, "a", "tcp", ":80")
	peers <- []Peer{m.asPeer("192.168.77.2")} // its own idea of where it is
	for i, address := range []string{outsideAddr, "192.0.2.99", "192.0.2.100"} {
		if i > 0 {
			m.do(func() error {
				return onDevice("eth0", func(l netlink.Link) error {
					addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
					if err != nil {
						return err
					}
					for _, old := range addrs {
						if err := netlink.AddrDel(l, &old); err != nil {
							return err
						}
					}
					return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(24, 32)}})
				})
			})
		}
		testenv.Eventually(t, 2*time.Minute, "the node knows where its peer is", func() error {
			n.server.wg.mu.Lock()
			defer n.server.wg.mu.Unlock()
			have, err := n.server.wg.stateLocked()
			if err != nil {
				return err
			}
			for _, p := range have.Peers {
				if p.Endpoint != nil && p.Endpoint.IP.String() == address {
					return nil
				}
			}
			return fmt.Errorf("not at %s: %+v", address, have.Peers)
		})
		reaches(t, a, "pod to the translated node", wgPeerIP+":80", "b "+a.ips[0])
		reaches(t, m.ns, "the translated node to a pod", a.ips[0]+":80", "a "+wgPeerIP)
	}
	have, err := n.observeAll()
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := have["wireguard peer "+publicKey(2)+" dev "+wireGuardDevice].(wgPeer); !ok || p.endpoint.IsValid() {
		t.Errorf("the node was told of a place for the peer: %v", have)
	}
}
