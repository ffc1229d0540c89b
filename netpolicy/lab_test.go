// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/policymodel"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, netns.Main)) }

// lab is a world whose pods of this node are network namespaces, routed by the process's own, which is the node.
type lab struct {
	*world
	t  *testing.T
	ns map[netip.Addr]*netns.NS
}

func newLab(t *testing.T, w *world) *lab {
	netns.RequireNFT(t)
	netns.Sysctl(t, "ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/icmp_ratelimit=0", "ipv6/icmp/ratelimit=0")
	// The tests' pods have the same addresses: a new connection is not to be taken for one of an earlier test, which
	// may never have ended.
	testenv.NoError(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	l := &lab{w, t, map[netip.Addr]*netns.NS{}}
	for _, b := range w.Sandboxes {
		l.plug(b.IPs)
	}
	t.Cleanup(func() { testenv.Check(t, Remove()) })
	return l
}

// plug makes the namespace of a pod, which has an address of each family.
func (l *lab) plug(ips []netip.Addr) {
	ns := netns.New(l.t)
	device := fmt.Sprint("vethcor", len(l.ns)/len(ips))
	ns.Link(l.t, device, "eth0", nil, []string{ips[0].String() + "/32", ips[1].String() + "/128"})
	testenv.NoError(l.t, wire(ns, device, ips))
	for _, ip := range ips {
		l.ns[ip] = ns
	}
	l.serve(ns, policymodel.Served()...)
}

// wire routes between a pod and the node; neither has to ask for the other.
func wire(ns *netns.NS, device string, ips []netip.Addr) error {
	host, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(host, hostMAC); err != nil {
		return err
	}
	errs := []error{ns.Do(func() error { return routes() })}
	for _, ip := range ips {
		errs = append(errs, neighbour(host, ip, podMAC),
			netlink.RouteAdd(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: netlink.NewIPNet(ip.AsSlice()), Scope: netlink.SCOPE_LINK}))
	}
	return errors.Join(errs...)
}

// routes are those of a pod, and its neighbour.
func routes() error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, podMAC); err != nil {
		return err
	}
	var errs []error
	for _, gateway := range []string{"169.254.1.1", "fe80::1"} {
		ip := netip.MustParseAddr(gateway)
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		errs = append(errs, neighbour(link, ip, hostMAC), netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Gw: ip.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: &net.IPNet{IP: everything.Addr().AsSlice(), Mask: net.CIDRMask(0, everything.Addr().BitLen())},
		}))
	}
	return errors.Join(errs...)
}

func neighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
}

// serve answers by TCP and UDP whatever comes, with what came, until the test ends.
func (l *lab) serve(ns netns.Doer, numbers ...int32) {
	for _, port := range numbers {
		netns.Echo(l.t, ns, "", "tcp", fmt.Sprint(":", port))
		netns.Echo(l.t, ns, "", "udp", fmt.Sprint(":", port))
	}
}

// apply puts the rules of the world into the kernel.
func (l *lab) apply(tab *table) {
	l.t.Helper()
	testenv.NoError(l.t, tab.apply(l.t.Context(), Desired(l.State, DefaultLimits()).Ruleset))
}

// refused turns the kernel's several words into one.
func refused(err error) error {
	for _, e := range []error{
		syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.EACCES, syscall.EPERM, syscall.ECONNRESET, syscall.EPIPE,
	} {
		if errors.Is(err, e) {
			return errRefused
		}
	}
	return err
}

// try opens the connection. The error is errRefused when it was, and another one when nothing was to be heard.
func (l *lab) try(c connection) error { return l.tryAt(c, netip.AddrPortFrom(c.to, uint16(c.port))) }

// tryAt is try where the client sends the connection somewhere else than to who gets it.
func (l *lab) tryAt(c connection, at netip.AddrPort) error {
	var conn net.Conn
	err := l.in(c.from).Do(func() (err error) {
		d := net.Dialer{LocalAddr: local(c), Timeout: patience}
		conn, err = d.Dial(strings.ToLower(string(c.proto)), at.String())
		return err
	})
	if err != nil {
		return refused(err)
	}
	defer conn.Close()
	return ping(conn)
}

func local(c connection) net.Addr {
	if c.proto == corev1.ProtocolUDP {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
}

// pings counts those by datagrams, so that each says something else.
var pings atomic.Uint32

// ping sends something and waits for it to come back, or for a refusal. Datagrams may be lost, and refusals of them;
// and the answer to an earlier one may come late, which says nothing.
func ping(conn net.Conn) error {
	deadline, payload := time.Now().Add(patience), []byte("x")
	_, datagrams := conn.(*net.UDPConn)
	if datagrams {
		payload = binary.BigEndian.AppendUint32(nil, pings.Add(1))
	}
	b := make([]byte, len(payload))
	for {
		if _, err := conn.Write(payload); err != nil {
			return refused(err)
		}
		next := deadline
		if datagrams {
			next = time.Now().Add(200 * time.Millisecond)
		}
		_ = conn.SetReadDeadline(next)
		_, err := conn.Read(b)
		for datagrams && err == nil && !bytes.Equal(b, payload) {
			_, err = conn.Read(b)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, io.EOF):
			return errRefused
		case !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline):
			return refused(err)
		}
	}
}

// TestDuplicateReplyDoesNotAnswerNextProbe: an answer that comes twice, as it does where the first one was late, is
// none to what is asked later.
func TestDuplicateReplyDoesNotAnswerNextProbe(t *testing.T) {
	server := testenv.Must(net.ListenPacket("udp", "127.0.0.1:0"))(t)
	var arrived atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			answers := 1
			switch arrived.Add(1) {
			case 1:
				answers = 2
			case 2:
				answers = 0
			}
			for range answers {
				_, _ = server.WriteTo(b[:n], from)
			}
		}
	}()
	defer func() { server.Close(); <-done }()
	c := testenv.Must(net.Dial("udp", server.LocalAddr().String()))(t)
	defer c.Close()
	for range 2 {
		testenv.NoError(t, ping(c))
	}
	if n := arrived.Load(); n < 3 {
		t.Errorf("the second datagram has no answer, and of %d one was taken for it", n)
	}
}

// truth tries all connections between the lab's pods and compares with the model.
func (l *lab) truth(r *rand.Rand, share int) (allowed, denied int) {
	l.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	several := make(chan struct{}, 16) // as many connections at a time
	for _, c := range l.connections(policymodel.Served()) {
		from := l.ns[c.from] != nil || slices.Contains(proxySources, c.from)
		if !from || l.ns[c.to] == nil || c.proto == corev1.ProtocolSCTP || r.IntN(share) > 0 {
			continue
		}
		several <- struct{}{}
		wg.Go(func() {
			defer func() { <-several }()
			want := l.allowed(c)
			err := l.try(c)
			mu.Lock()
			defer mu.Unlock()
			if want && err != nil || !want && !errors.Is(err, errRefused) {
				l.t.Errorf("%v to %v %v %d: %v; allowed: %v", c.from, c.to, c.proto, c.port, err, want)
			}
			if want {
				allowed++
			} else {
				denied++
			}
		})
	}
	wg.Wait()
	return allowed, denied
}

// addressOf is a pod's of this node.
func (l *lab) addressOf(namespace, name string, family int) netip.Addr {
	for _, b := range l.Sandboxes {
		if b.Namespace == namespace && b.Name == name {
			return b.IPs[map[int]int{4: 0, 6: 1}[family]]
		}
	}
	l.t.Fatalf("no pod %s/%s here", namespace, name)
	return netip.Addr{}
}
