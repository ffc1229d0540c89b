// SPDX-License-Identifier: Apache-2.0

package hostfirewall_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

func texts(chains []hostfirewall.Chain) []string {
	var out []string
	for _, c := range chains {
		out = append(out, string(c.Program)+" "+string(c.Hook)+": "+c.String())
	}
	slices.Sort(out)
	return out
}

// TestBlockingFirewallChainsAreFound: closed are chains of others at the two hooks whose policy or last rule drops what
// is left.
func TestBlockingFirewallChainsAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		rules string
		want  []string
	}{
		"nothing":      {"add table inet x", nil},
		"iptables":     {"add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }", []string{"iptables forward: ip filter FORWARD"}},
		"another hook": {"add table ip filter; add chain ip filter OUTPUT { type filter hook output priority 0; policy drop; }", nil},
		"docker": {"add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
			[]string{"Docker forward: ip filter FORWARD"}},
		"ufw and docker": {"add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter ufw-user-forward; add chain ip filter ufw-user-input; " +
			"add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }",
			[]string{"ufw forward: ip filter FORWARD", "ufw input: ip filter INPUT"}},
		"ufw's IPv6": {"add table ip6 filter; add chain ip6 filter ufw6-user-input; add chain ip6 filter INPUT { type filter hook input priority 0; policy drop; }",
			[]string{"ufw input: ip6 filter INPUT"}},
		"firewalld": {"add table inet firewalld; add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy accept; }; " +
			"add rule inet firewalld filter_INPUT ct state established accept; add rule inet firewalld filter_INPUT reject with icmpx admin-prohibited",
			[]string{"firewalld input: inet firewalld filter_INPUT"}},
		"an administrator's": {"add table inet filter; add chain inet filter input { type filter hook input priority 0; policy drop; }", []string{"nftables input: inet filter input"}},
		"the last rule drops": {"add table inet a; add chain inet a f { type filter hook forward priority 0; policy accept; }; add rule inet a f counter drop",
			[]string{"nftables forward: inet a f"}},
		"the last rule drops some": {"add table inet a; add chain inet a f { type filter hook forward priority 0; policy accept; }; add rule inet a f tcp dport 22 drop", nil},
		"ours": {"add table inet coracle-policy; add chain inet coracle-policy f { type filter hook forward priority 0; policy drop; }; " +
			"add table ip kube-proxy; add chain ip kube-proxy f { type filter hook forward priority 0; policy drop; }", nil},
		"firewalld's reload": {"add table inet firewalld_policy_drop; add chain inet firewalld_policy_drop f { type filter hook forward priority 0; policy drop; }", nil},
	} {
		t.Run(name, func(t *testing.T) {
			netns.RequireNFT(t)
			if out, err := exec.Command("nft", "flush ruleset; "+c.rules).CombinedOutput(); err != nil {
				t.Fatalf("nft: %v: %s", err, out)
			}
			got, err := hostfirewall.Find()
			if err != nil || !slices.Equal(texts(got), c.want) {
				t.Errorf("got %q, %v, want %q", texts(got), err, c.want)
			}
		})
	}
}

// TestFindNFTUnusual: whichever rules stand in a chain, all chains are read, and a rule that matches something is no
// rule for all that is left.
func TestFindNFTUnusual(t *testing.T) {
	netns.RequireNFT(t)
	nft := func(commands string) error {
		out, err := exec.Command("nft", commands).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	const base = "{ type filter hook forward priority 0; policy accept; }"
	testenv.NoError(t, nft("flush ruleset; add table inet z; add chain inet z f { type filter hook forward priority 5; policy drop; }"))
	tried := 0
	for i, rule := range []string{
		"quota over 10 mbytes drop", "limit rate 5/second drop", "fib daddr type local drop", `osf name "Linux" drop`, "ct state new drop", "ct helper set 0", "meta mark 1 drop",
		"numgen random mod 2 0 drop", "jhash ip saddr mod 2 0 drop", "ct count over 5 drop", "tcp option maxseg size 5 drop", "exthdr frag exists drop", "socket transparent 1 drop",
		"rt classid 5 drop", "rt ipsec exists drop", "ipsec in reqid 1 drop", "synproxy mss 1460", "notrack", "queue num 1 bypass", "log group 2 drop counter accept", "ip saddr { 192.0.2.1, 192.0.2.2 } drop",
		"ip saddr vmap { 192.0.2.1 : drop }", "ct timeout set 0", "sctp chunk data exists drop", "dccp option 5 exists drop", "vxlan vni 5 drop", "last counter accept", "meta time > 5 drop",
	} {
		chain := fmt.Sprint("inet u", i)
		if err := nft(fmt.Sprintf("add table %s; add chain %s f %s; add rule %s f %s", chain, chain, base, chain, rule)); err == nil {
			tried++
		}
	}
	got, err := hostfirewall.Find()
	if want := []string{"nftables forward: inet z f"}; err != nil || !slices.Equal(texts(got), want) {
		t.Errorf("got %q, %v, want %q", texts(got), err, want)
	}
	testenv.True(t, tried >= 5, "nft and the kernel take %d of the rules only", tried)
	t.Logf("%d rules", tried)
}

// TestUnusualChainNamesAreNotInCommands: the kernel takes any name. What is no word is in no command that a user
// types, and shown as what it is.
func TestUnusualChainNamesAreNotInCommands(t *testing.T) {
	netns.RequireNFT(t)
	conn := testenv.Must(nftables.New())(t)
	conn.FlushRuleset()
	drop := nftables.ChainPolicyDrop
	for _, name := range []string{"f", "f; reboot", "f\nnothing drops anything"} {
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "x " + name})
		if name == "f" {
			table.Name = "x"
			conn.AddTable(table)
		}
		conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	}
	testenv.NoError(t, conn.Flush())
	chains, err := hostfirewall.Find()
	testenv.Require(t, err == nil && len(chains) == 3, "found %v, %v", chains, err)
	got := hostfirewall.Commands(chains, hostfirewall.Needs{Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}})
	testenv.EqualSlices(t, got, []string{"nft insert rule inet x f ip saddr 10.42.0.0/16 accept", "nft insert rule inet x f ip daddr 10.42.0.0/16 accept"}, "to be typed:")
	if text := hostfirewall.Describe(chains); !strings.Contains(text, `inet "x f; reboot" "f; reboot"`) || strings.Contains(text, "\n") {
		t.Errorf("said: %s", text)
	}
}

// TestOnlyChainsOfPodFamiliesConcern: a chain of a family that no pod has, or where no pods are, blocks nothing,
// and nothing is opened there.
func TestOnlyChainsOfPodFamiliesConcern(t *testing.T) {
	four, six := netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")
	all := []hostfirewall.Chain{{hostfirewall.IPTables, hostfirewall.Forward, "ip", "filter", "FORWARD"}, {hostfirewall.IPTables, hostfirewall.Forward, "ip6", "filter", "FORWARD"}, {hostfirewall.NFTables, hostfirewall.Forward, "inet", "a", "f"},
		{hostfirewall.UFW, hostfirewall.Forward, "", "", ""}, {hostfirewall.IPTables, hostfirewall.Input, "ip6", "filter", "INPUT"}}
	for name, c := range map[string]struct {
		pods []netip.Prefix
		want []int
	}{
		"IPv4 alone": {[]netip.Prefix{four}, []int{0, 2, 3, 4}}, "IPv6 alone": {[]netip.Prefix{six}, []int{1, 2, 3, 4}},
		"both": {[]netip.Prefix{four, six}, []int{0, 1, 2, 3, 4}}, "a server without pods": {nil, []int{4}},
	} {
		t.Run(name, func(t *testing.T) {
			var want []hostfirewall.Chain
			for _, i := range c.want {
				want = append(want, all[i])
			}
			testenv.EqualSlices(t, (hostfirewall.Needs{Port: 6443, Pods: c.pods}).Concern(all), want, "")
		})
	}
}

func TestCommandsOpenWhatIsNeeded(t *testing.T) {
	needs := hostfirewall.Needs{Port: 6443, Tunnel: 8472, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}}
	chain := func(p hostfirewall.Program, h hostfirewall.Hook, family, name string) hostfirewall.Chain {
		return hostfirewall.Chain{Program: p, Hook: h, Family: family, Table: "filter", Name: name}
	}
	for name, c := range map[string]struct {
		chains  []hostfirewall.Chain
		needs   hostfirewall.Needs
		want    []string
		lasting bool
	}{
		"ufw": {[]hostfirewall.Chain{chain(hostfirewall.UFW, hostfirewall.Input, "ip", "INPUT"), chain(hostfirewall.UFW, hostfirewall.Input, "ip6", "INPUT"), chain(hostfirewall.UFW, hostfirewall.Forward, "ip", "FORWARD")}, needs, []string{
			"ufw allow 6443", "ufw allow 8472/udp", "ufw allow from 10.42.0.0/16", "ufw allow from fd42::/56",
			"ufw route allow from 10.42.0.0/16", "ufw route allow to 10.42.0.0/16", "ufw route allow from fd42::/56", "ufw route allow to fd42::/56"}, true},
		"ufw that routes": {[]hostfirewall.Chain{chain(hostfirewall.UFW, hostfirewall.Input, "ip", "INPUT")}, hostfirewall.Needs{Port: 6443}, []string{"ufw allow 6443"}, true},
		"firewalld": {[]hostfirewall.Chain{{hostfirewall.Firewalld, hostfirewall.Forward, "inet", "firewalld", "filter_FORWARD"}}, needs, []string{
			"firewall-cmd --permanent --add-port=6443/tcp --add-port=6443/udp --add-port=8472/udp",
			"firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16", "firewall-cmd --permanent --zone=trusted --add-source=fd42::/56", "firewall-cmd --reload"}, true},
		"Docker": {[]hostfirewall.Chain{chain(hostfirewall.Docker, hostfirewall.Forward, "ip", "FORWARD"), chain(hostfirewall.Docker, hostfirewall.Forward, "ip6", "FORWARD")}, needs, []string{
			"iptables -I DOCKER-USER -s 10.42.0.0/16 -j ACCEPT", "iptables -I DOCKER-USER -d 10.42.0.0/16 -j ACCEPT",
			"ip6tables -I DOCKER-USER -s fd42::/56 -j ACCEPT", "ip6tables -I DOCKER-USER -d fd42::/56 -j ACCEPT"}, false},
		"iptables": {[]hostfirewall.Chain{chain(hostfirewall.IPTables, hostfirewall.Input, "ip", "INPUT")}, needs, []string{
			"iptables -I INPUT -p tcp --dport 6443 -j ACCEPT", "iptables -I INPUT -p udp --dport 6443 -j ACCEPT", "iptables -I INPUT -p udp --dport 8472 -j ACCEPT",
			"iptables -I INPUT -s 10.42.0.0/16 -j ACCEPT"}, false},
		"nftables": {[]hostfirewall.Chain{chain(hostfirewall.NFTables, hostfirewall.Input, "inet", "input"), chain(hostfirewall.NFTables, hostfirewall.Forward, "inet", "forward")}, hostfirewall.Needs{Port: 7443, Pods: needs.Pods}, []string{
			"nft insert rule inet filter input tcp dport 7443 accept", "nft insert rule inet filter input udp dport 7443 accept",
			"nft insert rule inet filter input ip saddr 10.42.0.0/16 accept", "nft insert rule inet filter input ip6 saddr fd42::/56 accept",
			"nft insert rule inet filter forward ip saddr 10.42.0.0/16 accept", "nft insert rule inet filter forward ip daddr 10.42.0.0/16 accept",
			"nft insert rule inet filter forward ip6 saddr fd42::/56 accept", "nft insert rule inet filter forward ip6 daddr fd42::/56 accept"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hostfirewall.Commands(c.chains, c.needs); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			testenv.True(t, hostfirewall.Persistent(c.chains) == c.lasting, "lasting: %v", !c.lasting)
		})
	}
}

func TestChainsAreDescribedByProgram(t *testing.T) {
	got := hostfirewall.Describe([]hostfirewall.Chain{
		{hostfirewall.UFW, hostfirewall.Input, "ip", "filter", "INPUT"},
		{hostfirewall.UFW, hostfirewall.Input, "ip6", "filter", "INPUT"}, {hostfirewall.UFW, hostfirewall.Forward, "ip", "filter", "FORWARD"},
		{hostfirewall.Docker, hostfirewall.Forward, "ip", "filter", "FORWARD"},
	})
	const want = "ufw drops what comes to this machine (ip filter INPUT, ip6 filter INPUT) and what pods send and receive (ip filter FORWARD), where no rule of its own accepts it; " +
		"Docker drops what pods send and receive (ip filter FORWARD), where no rule of its own accepts it"
	testenv.Equal(t, got, want, "")
}
