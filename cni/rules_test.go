// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

const emptyTable = `
add table inet coracle
add chain inet coracle errors { type filter hook prerouting priority -150 ; }
add chain inet coracle errors-of-pods
add chain inet coracle guard { type filter hook prerouting priority -300 ; }
add chain inet coracle host-ports
add chain inet coracle nat-output { type nat hook output priority -110 ; }
add chain inet coracle nat-postrouting { type nat hook postrouting priority 100 ; }
add chain inet coracle nat-prerouting { type nat hook prerouting priority -110 ; }
add set inet coracle cluster4 { type ipv4_addr ; flags interval ; }
add set inet coracle cluster6 { type ipv6_addr ; flags interval ; }
add set inet coracle hairpin4 { type ipv4_addr . ipv4_addr ; }
add set inet coracle hairpin6 { type ipv6_addr . ipv6_addr ; }
add set inet coracle pods4 { type ipv4_addr ; flags interval ; }
add set inet coracle pods6 { type ipv6_addr ; flags interval ; }
add set inet coracle senders4 { type ipv4_addr . ipv4_addr ; flags dynamic,timeout ; size 65536 ; }
add set inet coracle senders6 { type ipv6_addr . ipv6_addr ; flags dynamic,timeout ; size 65536 ; }
add set inet coracle services4 { type ipv4_addr ; flags interval ; }
add set inet coracle services6 { type ipv6_addr ; flags interval ; }
add map inet coracle address-ports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service ; }
add map inet coracle address-ports6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service ; }
add map inet coracle ports4 { type inet_proto . inet_service : ipv4_addr . inet_service ; }
add map inet coracle ports6 { type inet_proto . inet_service : ipv6_addr . inet_service ; }
add rule inet coracle errors meta l4proto { icmp, ipv6-icmp } iifname "vethcor*" jump errors-of-pods
add rule inet coracle errors-of-pods icmp type != { destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem } return
add rule inet coracle errors-of-pods icmpv6 type >= 128 return
add rule inet coracle errors-of-pods update @senders4 { ip saddr . ip saddr timeout 60s }
add rule inet coracle errors-of-pods ct state related ip saddr . ct original ip saddr @senders4 return
add rule inet coracle errors-of-pods ct state related ip saddr . ct reply ip saddr @senders4 return
add rule inet coracle errors-of-pods update @senders6 { ip6 saddr . ip6 saddr timeout 60s }
add rule inet coracle errors-of-pods ct state related ip6 saddr . ct original ip6 saddr @senders6 return
add rule inet coracle errors-of-pods ct state related ip6 saddr . ct reply ip6 saddr @senders6 return
add rule inet coracle errors-of-pods counter drop
add rule inet coracle guard iifname "vethcor*" ip daddr 127.0.0.0/8 drop
add rule inet coracle guard iifname "vethcor*" ip saddr 0.0.0.0 drop
add rule inet coracle guard iifname "vethcor*" meta nfproto ipv4 fib saddr . iif oif 0 drop
add rule inet coracle guard iifname "vethcor*" ip6 saddr { ::, fe80::/10 } meta l4proto != ipv6-icmp drop
add rule inet coracle guard iifname "vethcor*" ip6 saddr { ::, fe80::/10 } icmpv6 type != { nd-neighbor-solicit, nd-neighbor-advert } drop
add rule inet coracle guard iifname "vethcor*" ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif 0 drop
add rule inet coracle guard iifname != "vethcor*" ip saddr @cluster4 fib saddr . iif oif 0 drop
add rule inet coracle guard iifname != "vethcor*" ip6 saddr @cluster6 fib saddr . iif oif 0 drop
add rule inet coracle host-ports ip daddr @services4 return
add rule inet coracle host-ports dnat ip to ip daddr . meta l4proto . th dport map @address-ports4
add rule inet coracle host-ports meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
add rule inet coracle host-ports ip6 daddr @services6 return
add rule inet coracle host-ports dnat ip6 to ip6 daddr . meta l4proto . th dport map @address-ports6
add rule inet coracle host-ports meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
add rule inet coracle nat-output ip6 daddr ::1 return
add rule inet coracle nat-output ip daddr 127.0.0.0/8 ip daddr != 127.0.0.1 return
add rule inet coracle nat-output ip daddr 127.0.0.1 tcp dport { 6443, 10250 } return
add rule inet coracle nat-output fib daddr type local jump host-ports
add rule inet coracle nat-postrouting oifname "vethcor*" ip saddr 127.0.0.0/8 masquerade
add rule inet coracle nat-postrouting ip saddr . ip daddr @hairpin4 masquerade
add rule inet coracle nat-postrouting ip saddr @pods4 ip daddr != @cluster4 ip daddr != 224.0.0.0/4 masquerade fully-random
add rule inet coracle nat-postrouting ip6 saddr . ip6 daddr @hairpin6 masquerade
add rule inet coracle nat-postrouting ip6 saddr @pods6 ip6 daddr != @cluster6 ip6 daddr != ff00::/8 masquerade fully-random
add rule inet coracle nat-prerouting fib daddr type local jump host-ports
`

const dualStackElements = `
add element inet coracle cluster4 { 10.42.0.0/16 }
add element inet coracle cluster6 { fd42::/56 }
add element inet coracle hairpin4 { 10.42.7.2 . 10.42.7.2 }
add element inet coracle hairpin6 { fd42::2 . fd42::2 }
add element inet coracle pods4 { 10.42.7.0/24 }
add element inet coracle pods6 { fd42::/64 }
add element inet coracle services4 { 10.43.0.0/16 }
add element inet coracle services4 { 203.0.113.8/32 }
add element inet coracle services6 { fd43::/112 }
add element inet coracle address-ports4 { 192.0.2.1 . tcp . 8081 : 10.42.7.2 . 81 }
add element inet coracle ports4 { tcp . 8080 : 10.42.7.2 . 80 }
add element inet coracle ports4 { udp . 53 : 10.42.7.2 . 53 }
add element inet coracle ports6 { tcp . 8080 : fd42::2 . 80 }
`

func TestDesiredTableRendersPodRules(t *testing.T) {
	r := &attachment{
		IPs: []netip.Addr{netip.MustParseAddr("10.42.7.2"), netip.MustParseAddr("fd42::2")},
		Ports: []PortMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
			{HostPort: 8081, ContainerPort: 81, Protocol: "tcp", HostIP: "192.0.2.1"},
			{HostPort: 53, ContainerPort: 53, Protocol: "udp", HostIP: "0.0.0.0"},
		},
	}
	latecomer := hostPort{Protocol: "tcp", Port: 8080, Pod: netip.MustParseAddr("10.42.7.2"), PodPort: 99}
	cluster := prefixes("10.42.0.0/16", "fd42::/56")
	for _, c := range []struct {
		name           string
		pods, services []netip.Prefix
		ports          []hostPort
		want           string
	}{
		{"one pod with host ports", prefixes("10.42.7.0/24", "fd42::/64"), prefixes("10.43.0.0/16", "fd43::/112", "203.0.113.8/32"), append(r.hostPorts(), latecomer), emptyTable + dualStackElements},
		{"nothing any more", nil, nil, nil, emptyTable + `
add element inet coracle cluster4 { 10.42.0.0/16 }
add element inet coracle cluster6 { fd42::/56 }
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			nft := knftables.NewFake(knftables.InetFamily, tableName)
			expectForeignRules(t, nft)
			for range 2 { // applying twice is applying once
				testenv.NoError(t,
					apply(context.Background(), nft, desiredTable(c.pods, cluster, c.services, c.ports, []uint16{6443, 10250, 6443})))
				if got, want := lines(nft.Dump()), lines(c.want); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			}
		})
	}
}

// expectForeignRules fills the table with what another version could have left.
func expectForeignRules(t *testing.T, nft knftables.Interface) {
	t.Helper()
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: "old-a"})
	tx.Add(&knftables.Chain{Name: "old-b"})
	tx.Add(&knftables.Map{Name: "old-map", Type: "ipv4_addr : verdict"})
	tx.Add(&knftables.Rule{Chain: "old-a", Rule: "jump old-b"})
	tx.Add(&knftables.Rule{Chain: "old-b", Rule: "ip daddr vmap @old-map"})
	tx.Add(&knftables.Set{Name: "pods4", Type: "ipv4_addr", Flags: []knftables.SetFlag{knftables.IntervalFlag}})
	tx.Add(&knftables.Element{Set: "pods4", Key: []string{"10.99.0.0/24"}})
	testenv.NoError(t, nft.Run(context.Background(), tx))
}

func lines(s string) string {
	var out []string
	for _, l := range strings.Split(s, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// mappings are so many host ports beside a container port that has none.
func mappings(count int) string {
	text := `[{"hostPort":0,"containerPort":1}`
	for i := range count {
		text += fmt.Sprintf(`,{"hostPort":%d,"containerPort":80}`, 30000+i)
	}
	return text + "]"
}

func TestHostPortMappingsAreParsed(t *testing.T) {
	for name, c := range map[string]struct {
		json, want string
	}{
		"none":                         {`[]`, ""},
		"one":                          {`[{"hostPort":80,"containerPort":8080,"protocol":"TCP"}]`, ""},
		"no host port":                 {`[{"hostPort":0,"containerPort":8080,"protocol":"bogus"}]`, ""},
		"a protocol":                   {`[{"hostPort":80,"containerPort":8080,"protocol":"icmp"}]`, "unknown protocol"},
		"a large port":                 {`[{"hostPort":70000,"containerPort":8080}]`, "out of range"},
		"no container port":            {`[{"hostPort":80,"containerPort":0}]`, "out of range"},
		"a hostIP":                     {`[{"hostPort":80,"containerPort":1,"hostIP":"localhost"}]`, "is no address"},
		"loopback":                     {`[{"hostPort":80,"containerPort":1,"hostIP":"127.0.0.1"}]`, ""},
		"a loopback of another number": {`[{"hostPort":53,"containerPort":1,"hostIP":"127.0.0.53"}]`, "127.0.0.1 alone"},
		"the most":                     {mappings(256), ""},
		"too many":                     {mappings(257), "257 host ports"},
	} {
		conf, err := parseConf([]byte(`{"cniVersion":"1.0.0","runtimeConfig":{"portMappings":` + c.json + `}}`))
		if err == nil {
			_, err = conf.ports()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
