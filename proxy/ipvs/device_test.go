// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/servicerules"
	"github.com/coracle-k8s/coracle/test/netns"
)

// TestDeviceChangesAreRepaired: another program, as a manager of interfaces that takes the device for its own, takes an
// address of Services from it, sets it down, or removes it; what it adds is no harm. A full sync makes it whole. A
// bridge stands in the place of the dummy device, which this kernel need not have.
func TestDeviceChangesAreRepaired(t *testing.T) {
	netns.Require(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = servicerules.IPVSDevice
	bridge := func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}) }
	link := func() netlink.Link {
		t.Helper()
		l, err := netlink.LinkByName(servicerules.IPVSDevice)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	set := func(texts ...string) map[netip.Addr]bool {
		out := map[netip.Addr]bool{}
		for _, a := range texts {
			out[netip.MustParseAddr(a)] = true
		}
		return out
	}
	if err := bridge(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link()); err != nil {
			t.Error(err)
		}
	})
	four, six := &family{netlink: netlink.FAMILY_V4}, &family{netlink: netlink.FAMILY_V6}
	p := &Proxier{families: []*family{four, six}}
	write := func() {
		t.Helper()
		four.addresses, six.addresses = set("10.43.0.9", "203.0.113.7"), set("fd43::9")
		for _, f := range p.families {
			if err := applyAddresses(f.netlink, f.addresses, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	is := func(want bool, after string) {
		t.Helper()
		if ok, err := p.deviceIntact(); ok != want || err != nil {
			t.Errorf("after %s: it is whole: %v, %v, want %v", after, ok, err, want)
		}
	}
	write()
	is(true, "it was made")
	take := func(a string) func() error {
		return func() error { return netlink.AddrDel(link(), deviceAddress(netip.MustParseAddr(a))) }
	}
	for _, harm := range []struct {
		what string
		do   func() error
	}{
		{"an address was taken", take("203.0.113.7")},
		{"one of IPv6 was", take("fd43::9")},
		{"it was set down", func() error { return netlink.LinkSetDown(link()) }},
		{"it was removed", func() error { return netlink.LinkDel(link()) }},
		{"it was removed and is there again", func() error { return errors.Join(netlink.LinkDel(link()), bridge(), netlink.LinkSetUp(link())) }},
	} {
		if err := harm.do(); err != nil {
			t.Fatal(harm.what, err)
		}
		is(false, harm.what)
		if _, err := netlink.LinkByName(servicerules.IPVSDevice); err != nil {
			if err := bridge(); err != nil {
				t.Fatal(err)
			}
		}
		write()
		is(true, "it was written again")
	}
	if err := netlink.AddrAdd(link(), deviceAddress(netip.MustParseAddr("169.254.3.4"))); err != nil {
		t.Fatal(err)
	}
	is(true, "an address more")
	four.addresses, six.addresses = nil, nil
	is(true, "a sync that failed, so that nobody knows what is there")
}
