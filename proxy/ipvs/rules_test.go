// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRulesMarkTrafficWithoutIPVS tries the rules beside IPVS on the machine's own kernel, which need not have IPVS:
// programs of the node's stand where IPVS would, at the Services' addresses, and say who came.
func TestRulesMarkTrafficWithoutIPVS(t *testing.T) {
	netns.RequireNFT(t)
	outside, pod := netns.NewOutside(t), netns.NewPods(t)[podAddrs[0]]
	netns.Route(t, outside, nodeAddr, "0.0.0.0/0")
	lo := testenv.Must(netlink.LinkByName("lo"))(t)
	for _, a := range []string{"10.43.0.9", "203.0.113.7"} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(32, 32)}}
		testenv.NoError(t, netlink.AddrAdd(lo, addr))
		t.Cleanup(func() { _ = netlink.AddrDel(lo, addr) })
		netns.Serve(t, netns.Own{}, a, "tcp", a+":80")
	}
	netns.Serve(t, netns.Own{}, "node", "tcp", ":2222")
	netns.Serve(t, netns.Own{}, "nodeport", "tcp", nodeAddr+":30080")

	program := testenv.Must(knftables.New(knftables.IPv4Family, nft.IPVSTable))(t)
	w := &rulesWriter{nft: program, view: ruleView{
		family: rules4, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, serviceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}}
	apply := func(v View, full bool) {
		t.Helper()
		testenv.NoError(t, w.apply(t.Context(), Desired(v).Sets, nil, full))
	}
	external := func(more func(*corev1.Service)) func(*corev1.Service) {
		return func(s *corev1.Service) {
			balanced("203.0.113.7", nodeAddr)(s)
			s.Spec.Ports[0].NodePort = 30080
			if more != nil {
				more(s)
			}
		}
	}
	who := func(from netns.Doer, at, want string) {
		t.Helper()
		testenv.Equal(t, reaches(t, from, at), want, "%s is answered by", at)
	}
	apply(viewOf(external(nil), here, there), true)
	for name, from := range map[string]netns.Doer{"outside": outside, "pod": pod, "the node": netns.Own{}} {
		t.Log("from " + name)
		who(from, "10.43.0.9:80", "10.43.0.9")
		who(from, "203.0.113.7:80", "203.0.113.7")
		who(from, nodeAddr+":30080", "nodeport")
		// kubernetes 72236: what the node listens on is not to be had at a Service's address.
		netns.Refused(t, from, "10.43.0.9:2222")
		netns.Refused(t, from, "203.0.113.7:2222")
		// kubernetes 127410: a node's own address stays open, though it is a Service's too.
		who(from, nodeAddr+":2222", "node")
	}
	uplink := testenv.Must(netlink.LinkByName("uplink"))(t)
	// Where the pod network's route leads, but for the rule.
	services := &netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 43, 0, 0), Mask: net.CIDRMask(16, 32)}, Scope: netlink.SCOPE_LINK}
	testenv.NoError(t, netlink.RouteAdd(services))
	netns.Silent(t, pod, "10.43.0.10:80") // no Service's

	t.Log("source ranges")
	apply(viewOf(external(func(s *corev1.Service) {
		s.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", outsideAddr + "/32"}
	}), here), false)
	who(outside, "203.0.113.7:80", "203.0.113.7")
	netns.Silent(t, pod, "203.0.113.7:80")
	who(pod, "10.43.0.9:80", "10.43.0.9")

	t.Log("external policy Local: what comes from inside goes to the cluster address")
	local := external(func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	apply(viewOf(local, here), false)
	who(outside, nodeAddr+":30080", "nodeport")
	for _, from := range []netns.Doer{pod, netns.Own{}} {
		who(from, nodeAddr+":30080", "10.43.0.9")
		who(from, "203.0.113.7:80", "10.43.0.9")
	}

	t.Log("external policy Local without an endpoint here")
	apply(viewOf(local, there), false)
	netns.Silent(t, outside, nodeAddr+":30080")
	netns.Silent(t, outside, "203.0.113.7:80")
	who(pod, nodeAddr+":30080", "10.43.0.9")

	t.Log("no endpoints, which is IPVS' to refuse, and everything taken away")
	apply(View{}, false)
	who(outside, "203.0.113.7:80", "203.0.113.7")
	apply(viewOf(external(nil), here), true) // over what is there
	netns.Refused(t, outside, "203.0.113.7:2222")
	six := testenv.Must(knftables.New(knftables.IPv6Family, nft.IPVSTable))(t)
	w6 := &rulesWriter{nft: six, view: ruleView{
		family: rules6, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("fd42::/56")}, serviceCIDRs: []netip.Prefix{netip.MustParsePrefix("fd43::/112")},
	}}
	testenv.Check(t, w6.apply(t.Context(), newDesiredState().Sets, nil, true), "the rules of IPv6")
}

// TestForeignRuleChangesAreDetectedByCount: another program takes rules out of the table, or adds one, of which the
// kernel's news say nothing; what others do elsewhere is no harm, nor is what changes with Services.
func TestForeignRuleChangesAreDetectedByCount(t *testing.T) {
	netns.RequireNFT(t)
	for _, c := range []struct {
		of                      knftables.Family
		family                  ruleFamily
		pods, services, address string
	}{{knftables.IPv4Family, rules4, "10.42.0.0/16", "10.43.0.0/16", "10.43.0.9"}, {knftables.IPv6Family, rules6, "fd42::/56", "fd43::/112", "fd43::9"}} {
		t.Run(string(c.of), func(t *testing.T) {
			program := testenv.Must(knftables.New(c.of, nft.IPVSTable))(t)
			w := &rulesWriter{nft: program, view: ruleView{family: c.family, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix(c.pods)}}}
			table := nft.Table{Family: nft.IPv4, Name: nft.IPVSTable}
			if c.of == knftables.IPv6Family {
				table.Family = nft.IPv6
			}
			remove := func() {
				t.Helper()
				testenv.NoError(t, nft.Delete(table))
			}
			remove()
			t.Cleanup(remove)
			write := func(full bool, addresses ...string) {
				t.Helper()
				sets := map[string]map[string]bool{setAddresses: {}}
				for _, a := range addresses {
					sets[setAddresses][a] = true
				}
				testenv.NoError(t, w.apply(t.Context(), sets, nil, full))
			}
			is := func(want bool, after string) {
				t.Helper()
				for range 2 { // the second time nothing has changed
					if ok, err := w.intact(table); ok != want || err != nil {
						t.Errorf("after %s: it is whole: %v, %v, want %v", after, ok, err, want)
					}
				}
			}
			runNFT := func(format string) string {
				t.Helper()
				text := strings.NewReplacer("IN", string(c.of)+" "+nft.IPVSTable, "OTHER", string(c.of)+" other").Replace(format)
				netns.NFT(t, text)
				return text
			}
			is(false, "nothing was written")
			write(true)
			is(true, "the first writing")
			w.view.serviceCIDRs = []netip.Prefix{netip.MustParsePrefix(c.services)}
			write(true, c.address)
			is(true, "a rule more")
			write(false)
			is(true, "an element less")
			is(true, runNFT("add table OTHER; add chain OTHER filter-input; add rule OTHER filter-input accept"))
			for _, harm := range []string{
				"flush chain IN filter-input", "flush table IN", "insert rule IN nat-prerouting accept", "add chain IN foreign; add rule IN foreign drop", "delete table IN",
			} {
				is(false, runNFT(harm))
				write(true)
				is(true, "it was written again")
			}
		})
	}
}
