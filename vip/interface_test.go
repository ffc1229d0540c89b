// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"net"
	"net/netip"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestReservedAndSpecialAddressesAreRefused(t *testing.T) {
	reserved := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	for text, ok := range map[string]bool{
		"10.0.0.100": true, "fd00::100": true, "10.42.3.4": false, "224.0.0.1": false, "ff02::1": false, "127.0.0.1": false, "::1": false,
		"169.254.1.1": false, "fe80::1": false, "0.0.0.0": false, "::": false, "255.255.255.255": false, "fd00::1%eth0": false,
	} {
		testenv.Equal(t, (Check(netip.MustParseAddr(text), reserved) == nil), ok, "%s:", text)
	}
}

func TestFindChoosesInterfaceOfTheNetwork(t *testing.T) {
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	up := net.FlagUp | net.FlagBroadcast
	links := []Link{
		{net.Interface{Index: 1, Name: "lo", Flags: net.FlagUp | net.FlagLoopback}, prefixes("127.0.0.1/8", "::1/128")},
		{net.Interface{Index: 2, Name: "down0", HardwareAddr: net.HardwareAddr(other[:])}, prefixes("10.9.0.1/24")},
		{net.Interface{Index: 3, Name: "wg0", Flags: up}, prefixes("10.8.0.1/24")},
		{net.Interface{Index: 4, Name: "eth0", Flags: up, HardwareAddr: net.HardwareAddr(own[:])},
			prefixes("10.0.0.1/24", "fd00::1/64", "fe80::1/64")},
		{net.Interface{Index: 5, Name: "eth1", Flags: up, HardwareAddr: net.HardwareAddr(other[:])}, prefixes("10.0.0.7/24")},
	}
	for _, tt := range []struct{ address, on, want string }{
		{"10.0.0.100", "", "eth0 10.0.0.1"}, {"10.0.0.100", "eth1", "eth1 10.0.0.7"}, {"fd00::100", "", "eth0 fd00::1"},
		{"10.0.0.7", "", "is an address that this machine has, on eth1"}, {"10.0.1.1", "",
			"in no network of this machine's Ethernet interfaces (there is: 10.0.0.0/24 on eth0, 10.0.0.0/24 on eth1)"},
		{"10.9.0.5", "", "in no network"}, {"10.8.0.5", "", "in no network"}, {"10.8.0.5", "wg0", "in no network of the interface wg0"},
		{"10.0.0.100", "eth7", "there is no interface eth7"}, {"10.0.0.0", "", "the first or the last"}, {"10.0.0.255", "",
			"the first or the last"},
		{"127.0.0.9", "", "in no network"},
	} {
		got, err := Find(links, netip.MustParseAddr(tt.address), tt.on)
		text := got.Name + " " + got.Own.String()
		if err != nil {
			text = err.Error()
		}
		testenv.Contains(t, text, tt.want, "%s on %q:", tt.address, tt.on)
	}
	if p, _ := Find(links, v6, ""); p.source != netip.MustParseAddr("fe80::1") || p.hw != own || p.index != 4 {
		t.Errorf("IPv6 messages come from %s, %x, interface %d", p.source, p.hw, p.index)
	}
}
