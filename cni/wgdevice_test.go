// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	wireguardgo "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// TestKernelsWireGuard runs the tests of WireGuard once more in a second kernel, which has it where the machine's may
// not (docs/adr/0073).
func TestKernelsWireGuard(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.WithWireGuard(t, 40*time.Minute))
		return
	}
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"both ends", TestWireGuard},
		{"wireguard-go at the other end", func(t *testing.T) { testWireGuard(t, true) }},
		{"over IPv6", TestWireGuardOverIPv6},
		{"a translated peer", TestWireGuardFollowsATranslatedPeer},
		{"a translated peer with wireguard-go", func(t *testing.T) { testTranslatedPeer(t, true) }},
		{"forged packets", TestWireGuardForgedPackets},
		{"many peers", TestWireGuardManyPeers},
		{"a peer comes back", TestWireGuardPeerComesBack},
		{"a port that another program has", TestWireGuardPortIsTaken},
		{"the device goes", TestWireGuardDeviceGoes},
	} {
		t.Run(c.name, c.run)
	}
}

// TestWireGuardFollowsATranslatedPeer: a peer whose address is private is waited for, and followed when its translator
// gives it another one.
func TestWireGuardFollowsATranslatedPeer(t *testing.T) { testTranslatedPeer(t, false) }

func testTranslatedPeer(t *testing.T, otherInProcess bool) {
	kernel := kernelHasWireGuard(t)
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	peers := n.encrypted(nodeAddr)
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a := n.pod("aaa")
	m := newWGMachine(t, n, otherInProcess)
	m.peer(m.node, 1) // once a second instead of every 25, so that the test does not wait for that long
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
	n.encryptedBy(kernel)
	m.encryptedBy(kernel && !otherInProcess)
	have := testenv.Must(n.observeAll())(t)
	if p, ok := have["wireguard peer "+publicKey(2)+" dev "+wireGuardDevice].(wgPeer); !ok || p.endpoint.IsValid() {
		t.Errorf("the node has an endpoint for the peer: %v", have)
	}
}

// TestWireGuardManyPeers: what the device says of its peers, in several messages of the kernel's, is what it was given.
// Otherwise each look would tell it again.
func TestWireGuardManyPeers(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	peers := n.encrypted(nodeAddr)
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	const many = 200
	var list []Peer
	for i := range many {
		key := testKey(1)
		key[1] = byte(i + 1)
		list = append(list, Peer{
			Name: fmt.Sprint("node-", i), WireGuardKey: key.PublicKey().String(),
			PodCIDRs: prefixes(fmt.Sprintf("10.42.%d.0/24", i+8), fmt.Sprintf("fd42:0:0:%x::/64", i+8)),
			Underlay: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", i+1))},
		})
	}
	peers <- list
	testenv.Until(t, 5*time.Minute, "all peers are there", func() bool {
		nw := n.server.network.Load()
		return nw != nil && len(nw.paths.peers) == many
	})
	n.encryptedBy(kernelHasWireGuard(t))
	have := testenv.Must(n.observeAll())(t)
	count := 0
	for _, o := range have {
		if _, ok := o.(wgPeer); ok {
			count++
		}
	}
	testenv.True(t, count == many, "the device says that it has %d peers, want %d", count, many)
	if changes, err := n.server.applyHost(n.server.network.Load()); err != nil || len(changes) > 0 {
		t.Errorf("a second look changes %v, %v; want nothing", changes, err)
	}
}

// TestWireGuardPeerComesBack with its endpoint when another program has removed it: a peer that has nothing to say
// would not be found otherwise.
func TestWireGuardPeerComesBack(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.guard = time.Hour // the kernel says nothing of it, so what follows is found by the look of every few seconds alone
	peers := n.encrypted(nodeAddr)
	n.ready("10.42.7.0/24")
	peers <- []Peer{{Name: "b", PodCIDRs: prefixes("10.42.8.0/24"), WireGuardKey: publicKey(2), Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr)}}}
	there := func(when string) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, "the peer is there "+when, func() error {
			d := n.server.wg
			d.mu.Lock()
			defer d.mu.Unlock()
			have, err := d.stateLocked()
			if err != nil {
				return err
			}
			for _, p := range have.Peers {
				if p.PublicKey.String() == publicKey(2) && p.Endpoint != nil && p.Endpoint.String() == outsideAddr+":51820" && have.PrivateKey == d.key {
					return nil
				}
			}
			return fmt.Errorf("the device has %s and %+v", have.PrivateKey.PublicKey(), have.Peers)
		})
	}
	there("first")
	n.disturb(testKey(9), testKey(2).PublicKey())
	there("again")
	if n.server.wg.changed() {
		testenv.Until(t, 2*time.Minute, "what was put right is known", func() bool { return !n.server.wg.changed() })
	}
	n.encryptedBy(kernelHasWireGuard(t))
}

// TestDigestChangesWithConfigurationOnly: what another program may change is noticed, and where a peer was heard of
// last is not.
func TestDigestChangesWithConfigurationOnly(t *testing.T) {
	device := func(change func(*wgtypes.Device)) [32]byte {
		d := &wgtypes.Device{PrivateKey: testKey(1), ListenPort: 51820}
		for i := range byte(2) {
			d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: testKey(2 + i).PublicKey(), AllowedIPs: []net.IPNet{*ipNet(prefixes("10.42.8.0/24")[0])}})
		}
		change(d)
		return digest(d)
	}
	usual := device(func(*wgtypes.Device) {})
	for what, change := range map[string]func(*wgtypes.Device){
		"the key":      func(d *wgtypes.Device) { d.PrivateKey = testKey(9) },
		"the port":     func(d *wgtypes.Device) { d.ListenPort = 1 },
		"a peer":       func(d *wgtypes.Device) { d.Peers = d.Peers[:1] },
		"another peer": func(d *wgtypes.Device) { d.Peers[1].PublicKey = testKey(9).PublicKey() },
		"a network":    func(d *wgtypes.Device) { d.Peers[0].AllowedIPs = nil },
		"another's": func(d *wgtypes.Device) {
			d.Peers[0].AllowedIPs, d.Peers[1].AllowedIPs = nil, append(d.Peers[1].AllowedIPs, d.Peers[0].AllowedIPs...)
		},
		"a mask":        func(d *wgtypes.Device) { d.Peers[0].AllowedIPs[0] = *ipNet(prefixes("10.42.8.0/25")[0]) },
		"keeping it up": func(d *wgtypes.Device) { d.Peers[0].PersistentKeepaliveInterval = time.Second },
		"a shared key":  func(d *wgtypes.Device) { d.Peers[0].PresharedKey = testKey(9) },
	} {
		testenv.True(t, device(change) != usual, "%s is another, and that is not noticed", what)
	}
	if device(func(d *wgtypes.Device) {
		d.Peers[0].Endpoint, d.Peers[0].ReceiveBytes, d.Peers[0].LastHandshakeTime = &net.UDPAddr{Port: 1}, 7, time.Unix(1, 0)
	}) != usual {
		t.Error("a peer was heard of, and that counts as a change")
	}
	testenv.Equal(t, device(func(d *wgtypes.Device) { slices.Reverse(d.Peers) }), usual, "the peers come in another order, and that counts as a change:")
}

// TestWireGuardGoGetsNoStateEvents: wireguard-go does not hear from its tun device that it went down or up, which may
// come late, and which closes and opens its socket.
func TestWireGuardGoGetsNoStateEvents(t *testing.T) {
	said := make(chan tun.Event)
	go func() {
		defer close(said)
		for _, e := range []tun.Event{tun.EventDown, tun.EventMTUUpdate, tun.EventUp, tun.EventUp | tun.EventMTUUpdate, tun.EventDown} {
			said <- e
		}
	}()
	var heard []tun.Event
	for e := range withoutState(stateless{events: said}).Events() {
		heard = append(heard, e)
	}
	testenv.EqualSlices(t, heard, []tun.Event{tun.EventMTUUpdate, tun.EventMTUUpdate}, "it heard:")
}

// TestForeignPresharedKeyIsRemoved: a peer with a preshared key, which another program has set, loses it again.
func TestForeignPresharedKeyIsRemoved(t *testing.T) {
	dev := wireguardgo.NewDevice(withoutState(tuntest.NewChannelTUN().TUN()), conn.NewDefaultBind(), &wireguardgo.Logger{Verbosef: wireguardgo.DiscardLogf, Errorf: wireguardgo.DiscardLogf})
	d := newWGDevice("wg", testKey(1), ktesting.NewLogger(t, ktesting.NewConfig()))
	d.user = &wgUser{dev}
	defer d.close()
	want := wgPeer{device: "wg", key: publicKey(2), allowed: "10.42.8.0/24"}
	testenv.NoError(t, d.ensurePeer(want))
	satisfied := func() bool {
		t.Helper()
		have := map[string]object{}
		testenv.NoError(t, d.observe(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg"}}, func(o object) { have[o.id()] = o }))
		return satisfies(have[want.id()], want)
	}
	testenv.True(t, satisfied(), "a peer that was given all is not what it should be")
	foreign := testKey(9)
	testenv.NoError(t,
		d.configureLocked(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: testKey(2).PublicKey(), PresharedKey: &foreign}}}))
	testenv.False(t, !d.changed() || satisfied(), "a preshared key is not noticed, with which nothing is understood any more")
	testenv.NoError(t, d.ensurePeer(want))
	testenv.True(t, satisfied(), "the preshared key stays")
}

// TestWireGuardPortIsTaken: the log says so, and the network is set up as soon as the port is free.
func TestWireGuardPortIsTaken(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	other := testenv.Must(net.ListenUDP("udp", &net.UDPAddr{Port: clusterconfig.WireGuardPort}))(t)
	defer func() { _ = other.Close() }()
	n.encrypted(nodeAddr)
	n.cidrs <- prefixes("10.42.7.0/24")
	testenv.Until(t, 2*time.Minute, "the log says whose port it is", func() bool {
		return strings.Contains(n.log(), fmt.Sprintf("listening on UDP port %d (does another program have it?)", clusterconfig.WireGuardPort))
	})
	testenv.False(t, n.server.Ready(), "pods are served without a tunnel")
	_ = other.Close()
	testenv.Until(t, 2*time.Minute, "the network is set up", n.server.Ready)
	n.encryptedBy(kernelHasWireGuard(t))
}

// TestWireGuardDeviceGoes with what removes all that coracle made, and when another back end takes over: the kernel's
// outlives the process.
func TestWireGuardDeviceGoes(t *testing.T) {
	kernel := kernelHasWireGuard(t)
	n := newNode(t, "10.42.0.0/16")
	waitRemoved := func() error {
		if _, err := netlink.LinkByName(wireGuardDevice); !errors.As(err, &netlink.LinkNotFoundError{}) {
			return fmt.Errorf("the device is there (%v)", err)
		}
		return nil
	}
	stopped := func() {
		t.Helper()
		n.encrypted(nodeAddr)
		n.ready("10.42.7.0/24")
		testenv.Until(t, 2*time.Minute, "the network is set up", n.server.Ready)
		n.stop()
		if err := waitRemoved(); (err != nil) != kernel {
			t.Fatalf("coracle is stopped: %v; the kernel's: %t", err, kernel)
		}
	}
	stopped()
	n.o.Backend = clusterconfig.NetworkHostGateway
	n.start()
	n.ready("10.42.7.0/24")
	testenv.Eventually(t, 2*time.Minute, "another back end removes the device", waitRemoved)
	stopped()
	testenv.NoError(t, Cleanup(CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}))
	testenv.Check(t, waitRemoved(), "after the clean-up")
}
