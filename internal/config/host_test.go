// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestReplacementAddressIsOnSameLink: while the cable of a machine is out its other links keep their addresses, and
// none of these is where others look for it. What counts is an address on the same link, or on one that leads out.
func TestReplacementAddressIsOnSameLink(t *testing.T) {
	testenv.RequireRoot(t, "it makes a network namespace")
	runtime.LockOSThread() // for ever: the thread ends with the test's goroutine, wherever it is then
	must := func(err error) {
		t.Helper()
		testenv.NoError(t, err)
	}
	home, err := netns.Get()
	must(err)
	ns, err := netns.New()
	must(err)
	t.Cleanup(func() { testenv.Check(t, errors.Join(netns.Set(home), home.Close(), ns.Close())) })
	address := func(l netlink.Link, text string) *netlink.Addr {
		a, err := netlink.ParseAddr(text)
		must(err)
		must(netlink.AddrAdd(l, a))
		return a
	}
	link := func(name string, addresses ...string) (l netlink.Link, last *netlink.Addr) {
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "far-" + name}))
		for _, end := range []string{"far-" + name, name} { // a link has a carrier when both ends are up
			l, err = netlink.LinkByName(end)
			must(err)
			must(netlink.LinkSetUp(l))
		}
		for _, a := range addresses {
			last = address(l, a)
		}
		return l, last
	}
	lan, first := link("lan0", "192.0.2.5/24")
	link("wg0", "10.8.0.2/24")
	link("lxdbr0", "10.115.7.1/24")
	spare, _ := link("spare0", "198.51.100.9/24")
	far, err := netlink.LinkByName("far-spare0")
	must(err)
	outward := &netlink.Route{LinkIndex: spare.Attrs().Index, Gw: net.IPv4(198, 51, 100, 1)}
	unreachable := &netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Priority: 9}

	var h config.ReplacingHost
	h.Links, err = h.LinksWith([]netip.Addr{netip.MustParseAddr("192.0.2.5")})
	must(err)
	for _, step := range []struct {
		what string
		do   func() error
		want []netip.Addr
	}{
		{"as it began", func() error { return nil }, []netip.Addr{netip.MustParseAddr("192.0.2.5")}},
		{"without its address", func() error { return netlink.AddrDel(lan, first) }, nil},
		{"a default route that leads nowhere", func() error { return netlink.RouteAdd(unreachable) }, nil},
		{"another link leads out", func() error { return netlink.RouteAdd(outward) }, []netip.Addr{netip.MustParseAddr("198.51.100.9")}},
		{"its cable is out", func() error { return netlink.LinkSetDown(far) }, nil},
		{"its cable is in again", func() error { return netlink.LinkSetUp(far) }, []netip.Addr{netip.MustParseAddr("198.51.100.9")}},
		{"it does not any more", func() error { return netlink.RouteDel(outward) }, nil},
		{"another address on its link", func() error { address(lan, "203.0.113.5/24"); return nil }, []netip.Addr{netip.MustParseAddr("203.0.113.5")}},
	} {
		must(step.do())
		// The kernel tells routes of a carrier that comes or goes a moment later.
		testenv.Eventually(t, 2*time.Minute, step.what, func() error {
			if got, err := config.HostIPs(h, nil); err != nil || !slices.Equal(got, step.want) {
				return fmt.Errorf("%v, %v; want %v", got, err, step.want)
			}
			return nil
		})
	}
}
