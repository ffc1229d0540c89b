// SPDX-License-Identifier: Apache-2.0

package webconsole

import (
	"net"
	"net/netip"
	"testing"
)

func TestConsoleEndpointIsReachableAddress(t *testing.T) {
	o := &Options{
		AdvertiseAddress: net.ParseIP("203.0.113.1"), NodeIPs: []net.IP{net.ParseIP("2001:db8::7"), net.ParseIP("192.0.2.7")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	for listening, want := range map[string]string{
		"0.0.0.0:8443": "192.0.2.7:8443", "[::]:8443": "192.0.2.7:8443", "192.0.2.9:8443": "192.0.2.9:8443", "[2001:db8::9]:1": "[2001:db8::9]:1",
		"127.0.0.1:8443": "invalid AddrPort", "[::1]:8443": "invalid AddrPort",
	} {
		if got := o.endpoint(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listening))); got.String() != want {
			t.Errorf("%s: %s, want %s", listening, got, want)
		}
	}
}
