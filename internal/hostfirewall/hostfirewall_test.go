// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func texts(chains []Chain) []string {
	var out []string
	for _, c := range chains {
		out = append(out, string(c.Program)+" "+string(c.Hook)+": "+c.String())
	}
	slices.Sort(out)
	return out
}

// TestFindNFT: closed are chains of others at the two hooks whose policy or last rule drops what is left.
func TestFindNFT(t *testing.T) {
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
			nstest.RequireNFT(t)
			if out, err := exec.Command("nft", "flush ruleset; "+c.rules).CombinedOutput(); err != nil {
				t.Fatalf("nft: %v: %s", err, out)
			}
			got, err := findNFT()
			if err != nil || !slices.Equal(texts(got), c.want) {
				t.Errorf("got %q, %v, want %q", texts(got), err, c.want)
			}
		})
	}
}

func TestCommands(t *testing.T) {
	needs := Needs{Port: 6443, Tunnel: 8472, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}}
	chain := func(p Program, h Hook, family, name string) Chain {
		return Chain{Program: p, Hook: h, Family: family, Table: "filter", Name: name}
	}
	legacy := chain(Docker, Forward, "ip", "FORWARD")
	legacy.Legacy = true
	for name, c := range map[string]struct {
		chains  []Chain
		needs   Needs
		want    []string
		lasting bool
	}{
		"ufw": {[]Chain{chain(UFW, Input, "ip", "INPUT"), chain(UFW, Input, "ip6", "INPUT"), chain(UFW, Forward, "ip", "FORWARD")}, needs, []string{
			"ufw allow 6443", "ufw allow 8472/udp", "ufw allow from 10.42.0.0/16", "ufw allow from fd42::/56",
			"ufw route allow from 10.42.0.0/16", "ufw route allow to 10.42.0.0/16", "ufw route allow from fd42::/56", "ufw route allow to fd42::/56"}, true},
		"ufw that routes": {[]Chain{chain(UFW, Input, "ip", "INPUT")}, Needs{Port: 6443}, []string{"ufw allow 6443"}, true},
		"firewalld": {[]Chain{{Firewalld, Forward, "inet", "firewalld", "filter_FORWARD", false}}, needs, []string{
			"firewall-cmd --permanent --add-port=6443/tcp --add-port=6443/udp --add-port=8472/udp",
			"firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16", "firewall-cmd --permanent --zone=trusted --add-source=fd42::/56", "firewall-cmd --reload"}, true},
		"Docker": {[]Chain{chain(Docker, Forward, "ip", "FORWARD"), chain(Docker, Forward, "ip6", "FORWARD")}, needs, []string{
			"iptables -I DOCKER-USER -s 10.42.0.0/16 -j ACCEPT", "iptables -I DOCKER-USER -d 10.42.0.0/16 -j ACCEPT",
			"ip6tables -I DOCKER-USER -s fd42::/56 -j ACCEPT", "ip6tables -I DOCKER-USER -d fd42::/56 -j ACCEPT"}, false},
		"Docker's older tables": {[]Chain{legacy}, needs, []string{
			"iptables-legacy -I DOCKER-USER -s 10.42.0.0/16 -j ACCEPT", "iptables-legacy -I DOCKER-USER -d 10.42.0.0/16 -j ACCEPT"}, false},
		"iptables": {[]Chain{chain(IPTables, Input, "ip", "INPUT")}, needs, []string{
			"iptables -I INPUT -p tcp --dport 6443 -j ACCEPT", "iptables -I INPUT -p udp --dport 6443 -j ACCEPT", "iptables -I INPUT -p udp --dport 8472 -j ACCEPT",
			"iptables -I INPUT -s 10.42.0.0/16 -j ACCEPT"}, false},
		"nftables": {[]Chain{chain(NFTables, Input, "inet", "input"), chain(NFTables, Forward, "inet", "forward")}, Needs{Port: 7443, Pods: needs.Pods}, []string{
			"nft insert rule inet filter input tcp dport 7443 accept", "nft insert rule inet filter input udp dport 7443 accept",
			"nft insert rule inet filter input ip saddr 10.42.0.0/16 accept", "nft insert rule inet filter input ip6 saddr fd42::/56 accept",
			"nft insert rule inet filter forward ip saddr 10.42.0.0/16 accept", "nft insert rule inet filter forward ip daddr 10.42.0.0/16 accept",
			"nft insert rule inet filter forward ip6 saddr fd42::/56 accept", "nft insert rule inet filter forward ip6 daddr fd42::/56 accept"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Commands(c.chains, c.needs); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if Lasting(c.chains) != c.lasting {
				t.Errorf("lasting: %v", !c.lasting)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	got := Describe([]Chain{
		{UFW, Input, "ip", "filter", "INPUT", false}, {UFW, Input, "ip6", "filter", "INPUT", false}, {UFW, Forward, "ip", "filter", "FORWARD", false},
		{Docker, Forward, "ip", "filter", "FORWARD", true},
	})
	const want = "ufw drops what comes to this machine (ip filter INPUT, ip6 filter INPUT) and what pods send and receive (ip filter FORWARD), where no rule of its own accepts it; " +
		"Docker drops what pods send and receive (ip filter FORWARD (legacy)), where no rule of its own accepts it"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
