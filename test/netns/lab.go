// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Addresses of the link between a node, which is the process's own namespace, and a machine outside.
const (
	NodeIP, NodeIP6       = "192.0.2.1", "2001:db8::1"
	OutsideIP, OutsideIP6 = "192.0.2.2", "2001:db8::2"
)

// Patience is how long something may take that has to happen, on a kernel that is ten times slower than the machine's.
const Patience = 3 * time.Minute

// NewOutside makes a machine outside the node, with its device eth0 at the node's device uplink.
func NewOutside(t testing.TB) *NS {
	t.Helper()
	ns := New(t)
	ns.Link(t, "uplink", "eth0", []string{NodeIP + "/24", NodeIP6 + "/64"}, []string{OutsideIP + "/24", OutsideIP6 + "/64"})
	return ns
}

// PodIPs are the addresses of NewPods' pods, and PodIP6 that of one of them.
var PodIPs = []string{"10.42.0.2", "10.42.0.6"}

// PodIP6 is a pod's IPv6 address.
func PodIP6(i int) string { return fmt.Sprintf("fd42:0:0:%d::2", i) }

// NewPods has the process's own namespace be a node with two pods, by their addresses: it forwards, each pod's device
// eth0 is at its device pod0 or pod1, and pods send everything there.
func NewPods(t testing.TB) map[string]*NS {
	t.Helper()
	Sysctl(t, "ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1",
		// What is sent back the way it came has the kernel tell of a better way, at first; once it has given up, each
		// packet puts off the refusal that its rate limit would allow, and no connection is refused any more.
		"ipv4/conf/all/send_redirects=0", "ipv4/conf/default/send_redirects=0")
	out := map[string]*NS{}
	for i, ip := range PodIPs {
		ns, gw, gw6 := New(t), netip.MustParseAddr(ip).Prev().String(), fmt.Sprintf("fd42:0:0:%d::1", i)
		ns.Link(t, fmt.Sprint("pod", i), "eth0", []string{gw + "/30", gw6 + "/64"}, []string{ip + "/30", PodIP6(i) + "/64"})
		Route(t, ns, gw, "0.0.0.0/0")
		Route(t, ns, gw6, "::/0")
		out[ip] = ns
	}
	return out
}

// Route adds routes by a gateway inside a namespace.
func Route(t testing.TB, in Doer, gateway string, networks ...string) {
	t.Helper()
	for _, n := range networks {
		testenv.NoError(t, in.Do(func() error { return AddRoute(n, gateway) }), "a route to %s by %s", n, gateway)
	}
}

// Bridge is a segment in the process's own namespace to which others are joined.
type Bridge struct{ link *netlink.Bridge }

// NewBridge makes a bridge, with addresses of the process's own; mtu is that of all that is joined to it, or zero for
// the usual one.
func NewBridge(t testing.TB, name string, mtu int, addrs ...string) Bridge {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	b := Bridge{&netlink.Bridge{LinkAttrs: attrs}}
	testenv.NoError(t, netlink.LinkAdd(b.link), "making a bridge")
	t.Cleanup(func() { _ = netlink.LinkDel(b.link) })
	testenv.NoError(t, setup(name, addrs))
	return b
}

// Join joins a namespace, whose device is eth0, by a device of the process's own.
func (b Bridge) Join(t testing.TB, ns *NS, port string, addrs ...string) {
	t.Helper()
	ns.Link(t, port, "eth0", nil, addrs)
	l := testenv.Must(netlink.LinkByName(port))(t)
	testenv.NoError(t, netlink.LinkSetMaster(l, b.link))
	if mtu := b.link.Attrs().MTU; mtu > 0 {
		testenv.NoError(t, netlink.LinkSetMTU(l, mtu))
		testenv.NoError(t, ns.Do(func() error {
			l, err := netlink.LinkByName("eth0")
			return errors.Join(err, netlink.LinkSetMTU(l, mtu))
		}))
	}
}

// Sysctl sets some in the calling thread's namespace, each as NAME=VALUE below /proc/sys/net.
func Sysctl(t testing.TB, all ...string) {
	t.Helper()
	for _, s := range all {
		name, value, _ := strings.Cut(s, "=")
		testenv.NoError(t, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
	}
}

// BridgeNetfilter switches br_netfilter, which decides whether bridged frames pass the IP hooks.
func BridgeNetfilter(t testing.TB, on bool) {
	t.Helper()
	v := map[bool]string{false: "0", true: "1"}[on]
	for _, name := range []string{"iptables", "ip6tables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte(v), 0)
		if err != nil && on {
			t.Skip("this kernel has no br_netfilter to switch on:", err) // it is a module, which tests may not load
		}
	}
}

// NFT runs nft in the calling thread's namespace.
func NFT(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	testenv.NoError(t, err, "nft %v: %s", args, out)
	return string(out)
}

// Echo answers inside a namespace, until the test ends, each piece that comes with the name, a blank and the piece, or
// with the piece alone where the name is empty.
func Echo(t testing.TB, in Doer, name, network, addr string) {
	t.Helper()
	if name != "" {
		name += " "
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	if strings.HasPrefix(network, "udp") {
		c := ListenPacket(t, in, network, addr)
		wg.Go(func() { echoDatagrams(c, name) })
		return
	}
	var l net.Listener
	testenv.NoError(t, in.Do(func() (err error) { l, err = net.Listen(network, addr); return err }))
	t.Cleanup(func() { _ = l.Close() })
	wg.Go(func() {
		testenv.Accept(l, func(c net.Conn) {
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(t.Context(), func() { _ = c.Close() })()
				echo(c, name)
			})
		})
	})
}

func echo(c net.Conn, name string) {
	for buf := make([]byte, 64<<10); ; {
		n, err := c.Read(buf)
		if err == nil {
			_, err = c.Write(append([]byte(name), buf[:n]...))
		}
		if err != nil {
			return
		}
	}
}

func echoDatagrams(c net.PacketConn, name string) {
	for buf := make([]byte, 2048); ; {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(append([]byte(name), buf[:n]...), from)
		}
	}
}

// Say says something on a connection to Echo, and returns the name that answers.
func Say(c net.Conn, patience time.Duration) (name string, err error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	name, _, _ = strings.Cut(string(buf[:n]), " ")
	return name, err
}

// Reach waits until Serve answers at an address, and returns its name and the address that it sees.
func Reach(t testing.TB, from Doer, addr string) (name, peer string) {
	t.Helper()
	testenv.Eventually(t, Patience, addr+" answers", func() error {
		answer, err := Ask(from, addr)
		name, peer, _ = strings.Cut(answer, " ")
		return err
	})
	return name, peer
}

// Refused waits until a connection is refused at once.
func Refused(t testing.TB, from Doer, addr string) {
	t.Helper()
	testenv.Eventually(t, Patience, addr+" refuses", func() error {
		if got, err := Ask(from, addr); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("%q answers, %w", got, err)
		}
		return nil
	})
}

// Silent waits until nothing comes back from an address.
func Silent(t testing.TB, from Doer, addr string) {
	t.Helper()
	testenv.Eventually(t, Patience, addr+" is silent", func() error {
		got, err := Ask(from, addr)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			return fmt.Errorf("%q answers, %w", got, err)
		}
		return nil
	})
}
