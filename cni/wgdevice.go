// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
)

// wgDevice is a node's end of the tunnel. The kernel's device outlives the process. Where the kernel has none,
// wireguard-go runs in this process with a tun device, which is removed with the process.
type wgDevice struct {
	name string
	key  wgtypes.Key
	log  klog.Logger

	mu   sync.Mutex
	user *wgUser // nil where the kernel encrypts
	// lastSet are the endpoints that were configured. The device's state has those that it found since.
	lastSet        map[string]netip.AddrPort
	inKernelLogged bool // it was logged that the kernel encrypts
	// observedDigest is the digest of the device's state at the last observe.
	observedDigest [sha256.Size]byte
}

// pollPeriod is the interval of checks whether another program has changed the key or the peers: the kernel has no
// event for it.
const pollPeriod = 5 * time.Second

// digest returns a hash of the device's configuration without endpoints, which change by themselves. wireguard-go lists
// the peers in random order.
func digest(d *wgtypes.Device) [sha256.Size]byte {
	b := binary.LittleEndian.AppendUint64(slices.Clone(d.PrivateKey[:]), uint64(d.ListenPort))
	for _, p := range slices.SortedFunc(slices.Values(d.Peers),
		func(p, q wgtypes.Peer) int { return bytes.Compare(p.PublicKey[:], q.PublicKey[:]) }) {
		b = append(b, p.PublicKey[:]...)
		b = append(b, p.PresharedKey[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(p.PersistentKeepaliveInterval))
		b = append(b, joinNets(p.AllowedIPs)...)
		b = append(b, 0)
	}
	return sha256.Sum256(b)
}

// changed reports whether the device's configuration differs from the one that observe last read, also if this node
// itself has changed it. It returns false if the configuration cannot be read.
func (d *wgDevice) changed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	have, err := d.stateLocked()
	return err == nil && digest(have) != d.observedDigest
}

func newWGDevice(name string, key wgtypes.Key, log klog.Logger) *wgDevice {
	return &wgDevice{name: name, key: key, log: log, lastSet: map[string]netip.AddrPort{}}
}

// makeWireGuard makes the device where there is none, and replaces a device of another kind.
func (k *kernel) makeWireGuard(want link) error {
	l, err := k.find(want.name)
	if err == nil && k.wg.kind(l) != kindWireGuard {
		err = removeDevice(want.name)
		delete(k.links, want.name)
		if err == nil {
			_, err = k.find(want.name)
		}
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return k.wg.make(want.mtu)
	}
	return err
}

// make makes the device. The caller has checked that there is none of that name.
func (d *wgDevice) make(mtu int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeLocked()
	clear(d.lastSet)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = d.name, mtu
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case err == nil:
		d.logModeLocked()
		return d.configureLocked(d.identity())
	case !errors.Is(err, unix.EOPNOTSUPP):
		return err
	}
	user, err := openWGUser(d.name, mtu, d.identity(), d.log)
	if err != nil {
		return fmt.Errorf("this kernel has no WireGuard (module wireguard), and wireguard-go cannot work either: %w", err)
	}
	d.user, d.inKernelLogged = user, false
	d.log.Info("This kernel has no WireGuard: wireguard-go encrypts packets between nodes in this process, which takes more processor time",
		"device", d.name)
	return nil
}

// logModeLocked logs once that the kernel encrypts.
func (d *wgDevice) logModeLocked() {
	if d.user == nil && !d.inKernelLogged {
		d.inKernelLogged = true
		d.log.Info("The kernel encrypts packets between nodes", "device", d.name)
	}
}

// cannotListen explains that listening on the port failed.
func cannotListen(port int, err error) error {
	return fmt.Errorf("listening on UDP port %d (does another program have it?): %w", port, err)
}

// kind returns the link's kind. For wireguard-go's tun device it is kindWireGuard.
func (d *wgDevice) kind(l netlink.Link) string {
	if d == nil || l.Attrs().Name != d.name {
		return l.Type()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.user != nil && !d.user.closed() && l.Type() == "tuntap" {
		return kindWireGuard
	}
	return l.Type()
}

func (d *wgDevice) identity() wgtypes.Config {
	port := clusterconfig.WireGuardPort
	return wgtypes.Config{PrivateKey: &d.key, ListenPort: &port}
}

// observe reads the device's configuration.
func (d *wgDevice) observe(l netlink.Link, put func(object)) error {
	if d == nil || l.Attrs().Name != d.name || d.kind(l) != kindWireGuard {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	have, err := d.stateLocked()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("asking the WireGuard device %s: %w", d.name, err)
	}
	d.logModeLocked() // the device may be from before a restart
	d.observedDigest = digest(have)
	// A peer that another program removed has to be added with its endpoint again.
	maps.DeleteFunc(d.lastSet, func(key string, _ netip.AddrPort) bool {
		return !slices.ContainsFunc(have.Peers, func(p wgtypes.Peer) bool { return p.PublicKey.String() == key })
	})
	put(wgIdentity{d.name, have.PrivateKey.PublicKey().String(), have.ListenPort})
	for _, p := range have.Peers {
		key := p.PublicKey.String()
		put(wgPeer{
			device: d.name, key: key, endpoint: d.lastSet[key], allowed: joinNets(p.AllowedIPs),
			keepalive: int(p.PersistentKeepaliveInterval / time.Second), hasPresharedKey: p.PresharedKey != wgtypes.Key{},
		})
	}
	return nil
}

// ensureIdentity sets the key and the port.
func (d *wgDevice) ensureIdentity() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.configureLocked(d.identity())
}

// ensurePeer adds the peer or changes it. It sets an endpoint only once: the device may have found a better one since.
func (d *wgDevice) ensurePeer(p wgPeer) error {
	key, err := wgtypes.ParseKey(p.key)
	if err != nil {
		return err
	}
	every := time.Duration(p.keepalive) * time.Second
	var none wgtypes.Key // another program may have set one
	c := wgtypes.PeerConfig{PublicKey: key, PresharedKey: &none, PersistentKeepaliveInterval: &every, ReplaceAllowedIPs: true}
	for text := range strings.SplitSeq(p.allowed, ",") {
		if n, err := netip.ParsePrefix(text); err == nil {
			c.AllowedIPs = append(c.AllowedIPs, *ipNet(n))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if lastSet, ok := d.lastSet[p.key]; p.endpoint.IsValid() && (!ok || lastSet != p.endpoint) {
		c.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
	}
	if err := d.configureLocked(wgtypes.Config{Peers: []wgtypes.PeerConfig{c}}); err != nil {
		return err
	}
	d.lastSet[p.key] = p.endpoint
	return nil
}

// removePeer removes a peer whose node does not exist any more, or has another key: difference finds that.
func (d *wgDevice) removePeer(p wgPeer) error {
	key, err := wgtypes.ParseKey(p.key)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lastSet, p.key)
	return d.configureLocked(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key, Remove: true, UpdateOnly: true}}})
}

func (d *wgDevice) stateLocked() (*wgtypes.Device, error) {
	if d.user != nil {
		return d.user.state()
	}
	c, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return c.Device(d.name)
}

func (d *wgDevice) configureLocked(config wgtypes.Config) error {
	if d.user != nil {
		return d.user.configure(config)
	}
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return c.ConfigureDevice(d.name, config)
}

// close ends wireguard-go in this process. The kernel's device stays.
func (d *wgDevice) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeLocked()
}

func (d *wgDevice) closeLocked() {
	if d.user != nil {
		d.user.close()
		d.user = nil
	}
}

// joinNets writes networks as in wgPeer.allowed: IPv4 first.
func joinNets(nets []net.IPNet) string {
	var ps []netip.Prefix
	for _, n := range nets {
		if p, ok := prefixOf(&n); ok {
			ps = append(ps, p)
		}
	}
	slices.SortFunc(ps, netip.Prefix.Compare)
	sortFamilies(ps)
	return strings.Join(convert.Slice(ps, netip.Prefix.String), ",")
}
