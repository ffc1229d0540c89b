// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDeviceChangesAreRepaired: another program, as a manager of interfaces that takes the device for its own, takes an
// address of Services from it, sets it down, or removes it; what it adds is no harm. A full sync makes it whole. A
// bridge stands in the place of the dummy device, which this kernel need not have.
func TestDeviceChangesAreRepaired(t *testing.T) {
	netns.Require(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nft.IPVSDevice
	bridge := func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}) }
	link := func() netlink.Link {
		t.Helper()
		return testenv.Must(netlink.LinkByName(nft.IPVSDevice))(t)
	}
	set := func(texts ...string) map[netip.Addr]bool {
		out := map[netip.Addr]bool{}
		for _, a := range texts {
			out[netip.MustParseAddr(a)] = true
		}
		return out
	}
	testenv.NoError(t, bridge())
	t.Cleanup(func() { testenv.Check(t, netlink.LinkDel(link())) })
	four, six := &family{netlink: netlink.FAMILY_V4}, &family{netlink: netlink.FAMILY_V6}
	p := &Proxier{families: []*family{four, six}}
	write := func() {
		t.Helper()
		four.addresses, six.addresses = set("10.43.0.9", "203.0.113.7"), set("fd43::9")
		for _, f := range p.families {
			testenv.NoError(t, applyAddresses(f.netlink, f.addresses, true))
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
		if _, err := netlink.LinkByName(nft.IPVSDevice); err != nil {
			testenv.NoError(t, bridge())
		}
		write()
		is(true, "it was written again")
	}
	testenv.NoError(t, netlink.AddrAdd(link(), deviceAddress(netip.MustParseAddr("169.254.3.4"))))
	is(true, "an address more")
	four.addresses, six.addresses = nil, nil
	is(true, "a sync that failed, so that it is unknown what is there")
}
