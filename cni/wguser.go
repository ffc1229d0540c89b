// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2"
)

// wgUser is WireGuard in this process with a tun device. It has its own goroutines from openWGUser until close, which
// waits for them.
type wgUser struct{ dev *device.Device }

// openWGUser starts WireGuard in this process (not in the kernel). It makes the tun device and the UDP socket in the
// network namespace of the calling thread.
func openWGUser(name string, mtu int, config wgtypes.Config, log klog.Logger) (*wgUser, error) {
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("making the tun device %s (is /dev/net/tun there?): %w", name, err)
	}
	u := &wgUser{device.NewDevice(withoutState(t), conn.NewDefaultBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   wgLog(name, log),
	})}
	if err := u.configure(config); err != nil {
		u.close()
		return nil, err
	}
	if err := u.dev.Up(); err != nil {
		u.close()
		return nil, cannotListen(*config.ListenPort, err)
	}
	return u, nil
}

// stateless is a tun device without events about being up or down.
type stateless struct {
	tun.Device
	events chan tun.Event
}

// withoutState filters the device's events and keeps only changes of the MTU. At "down" wireguard-go stops listening,
// and at "up" it listens again, in the network namespace of any thread. A device that was set up at once may send
// "down" late. The goroutine ends with the device's events.
func withoutState(t tun.Device) tun.Device {
	s := stateless{t, make(chan tun.Event)}
	go func() {
		defer close(s.events)
		for e := range t.Events() {
			if e &= tun.EventMTUUpdate; e != 0 {
				s.events <- e
			}
		}
	}()
	return s
}

func (s stateless) Events() <-chan tun.Event { return s.events }

// wgLog logs the device's problems. Problems of a peer, which repeat every second of an outage, are logged at level 2.
func wgLog(name string, log klog.Logger) func(format string, args ...any) {
	return func(format string, args ...any) {
		to := log
		if strings.HasPrefix(format, "%v - ") {
			to = log.V(2)
		}
		to.Info("WireGuard: "+fmt.Sprintf(format, args...), "device", name)
	}
}

func (u *wgUser) close() { u.dev.Close() }

// closed reports whether the device has ended, which it does when a program removes its tun device.
func (u *wgUser) closed() bool {
	select {
	case <-u.dev.Wait():
		return true
	default:
		return false
	}
}

func (u *wgUser) configure(c wgtypes.Config) error {
	if err := u.dev.IpcSet(wgText(c)); err != nil {
		return fmt.Errorf("configuring WireGuard: %w", err)
	}
	return nil
}

func (u *wgUser) state() (*wgtypes.Device, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	return parseWGText(text)
}

// wgText writes a configuration in the format of https://www.wireguard.com/xplatform/. Of peers it writes what
// ensurePeer and removePeer set.
func wgText(c wgtypes.Config) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if c.PrivateKey != nil {
		line("private_key", hex.EncodeToString(c.PrivateKey[:]))
	}
	if c.ListenPort != nil {
		line("listen_port", *c.ListenPort)
	}
	for _, p := range c.Peers {
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.Remove {
			line("remove", true)
		}
		if p.PresharedKey != nil {
			line("preshared_key", hex.EncodeToString(p.PresharedKey[:]))
		}
		if p.Endpoint != nil {
			line("endpoint", p.Endpoint)
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(*p.PersistentKeepaliveInterval/time.Second))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, n := range p.AllowedIPs {
			line("allowed_ip", n.String())
		}
	}
	return b.String()
}

// parseWGText reads a device's state. It ignores keys that are not needed.
func parseWGText(text string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{}
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), "=")
		var err error
		switch {
		case name == "private_key":
			d.PrivateKey, err = wgKeyOf(value)
		case name == "listen_port":
			d.ListenPort, err = strconv.Atoi(value)
		case name == "public_key":
			var p wgtypes.Peer
			p.PublicKey, err = wgKeyOf(value)
			d.Peers = append(d.Peers, p)
		case len(d.Peers) > 0:
			err = parseWGPeer(&d.Peers[len(d.Peers)-1], name, value)
		}
		if err != nil {
			return nil, fmt.Errorf("reading what WireGuard says of %s: %w", name, err)
		}
	}
	return d, nil
}

func parseWGPeer(p *wgtypes.Peer, name, value string) error {
	number := func() (int64, error) { return strconv.ParseInt(value, 10, 64) }
	switch name {
	case "preshared_key":
		key, err := wgKeyOf(value)
		p.PresharedKey = key
		return err
	case "endpoint":
		at, err := netip.ParseAddrPort(value)
		p.Endpoint = net.UDPAddrFromAddrPort(at)
		return err
	case "persistent_keepalive_interval":
		n, err := number()
		p.PersistentKeepaliveInterval = time.Duration(n) * time.Second
		return err
	case "last_handshake_time_sec":
		n, err := number()
		if n > 0 {
			p.LastHandshakeTime = time.Unix(n, 0)
		}
		return err
	case "rx_bytes":
		n, err := number()
		p.ReceiveBytes = n
		return err
	case "tx_bytes":
		n, err := number()
		p.TransmitBytes = n
		return err
	case "allowed_ip":
		n, err := netip.ParsePrefix(value)
		if err == nil {
			p.AllowedIPs = append(p.AllowedIPs, *ipNet(n))
		}
		return err
	}
	return nil
}

func wgKeyOf(text string) (key wgtypes.Key, err error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return key, err
	}
	return wgtypes.NewKey(b)
}
