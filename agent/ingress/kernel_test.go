// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRenderedKernelRulesMatchState(t *testing.T) {
	prefix, address := netip.MustParsePrefix, netip.MustParseAddr
	rules := kernelState{
		ports: []int{10443, 10080}, udp: []int{10443}, pods: []netip.Prefix{prefix("10.42.0.0/16")}, services: []netip.Prefix{prefix("10.43.0.0/16")},
		nodes: []netip.Addr{address("192.0.2.2"), address("192.0.2.1"), address("192.0.2.1")}, reserved: []uint16{10250, 6443},
		podNetworks: []netip.Prefix{prefix("10.42.3.0/24"), prefix("fd00:42::/64")},
	}.rules()
	want := map[string]string{
		"input": `tcp dport { 10080, 10443 } ct original proto-dst { 10080, 10443 } ip saddr != { 10.42.0.0/16, 192.0.2.1/32, 192.0.2.2/32 } drop
udp dport { 10443 } ct original proto-dst { 10443 } ip saddr != { 10.42.0.0/16, 192.0.2.1/32, 192.0.2.2/32 } drop
meta nfproto ipv6 tcp dport { 10080, 10443 } ct original proto-dst { 10080, 10443 } drop
meta nfproto ipv6 udp dport { 10443 } ct original proto-dst { 10443 } drop`,
		"output": `meta skuid 61080 ct direction original ip daddr 127.0.0.0/8 udp dport 53 accept
meta skuid 61080 ct direction original ip daddr { 10.43.0.0/16, 127.0.0.0/8, 169.254.0.0/16 } reject with icmpx admin-prohibited
meta skuid 61080 ct direction original ip daddr { 192.0.2.1/32, 192.0.2.2/32 } tcp dport { 6443, 10250 } reject with icmpx admin-prohibited
meta skuid 61080 ct direction original ip6 daddr ::1 udp dport 53 accept
meta skuid 61080 ct direction original ip6 daddr { ::1/128, fe80::/10 } reject with icmpx admin-prohibited`,
		"postrouting": `meta skuid 61080 ct direction original ip daddr { 10.42.0.0/16 } snat ip to 10.42.3.255`,
	}
	for chain, text := range want {
		if got := strings.Join(rules[chain], "\n"); got != text {
			t.Errorf("the chain %s is\n%s\nwant\n%s", chain, got, text)
		}
	}
}
