// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Needs is the traffic that firewalls have to accept.
type Needs struct {
	// Port is the port at which other machines reach this one, by TCP and UDP.
	Port int
	// Tunnel is the UDP port for encapsulated packets between nodes' pods. It is 0 where there is no encapsulation.
	Tunnel int
	// Pods are the networks of all pods of the cluster. Services' networks are not needed: a firewall never sees their
	// addresses, because they are translated before.
	Pods []netip.Prefix
}

// Concern returns the chains that packets of the cluster pass. It omits a forward chain when there are no pods of its
// family.
func (n Needs) Concern(chains []Chain) []Chain {
	return slices.DeleteFunc(slices.Clone(chains), func(c Chain) bool {
		return c.Hook == Forward && !slices.ContainsFunc(n.Pods, func(p netip.Prefix) bool { return c.has(p) })
	})
}

// has says whether packets of a network pass the chain.
func (c Chain) has(p netip.Prefix) bool {
	return c.Family == "" || c.Family == "inet" || p.Addr().Is4() == (c.Family == "ip")
}

// dockerUser is the chain that Docker leaves to the administrator. Packets pass it before Docker's own chains.
const dockerUser = "DOCKER-USER"

// Commands returns the commands that make the firewalls accept the cluster's traffic, in the order in which an
// administrator has to type them. Each may be repeated. There is no command for a chain whose name is not a plain word.
func Commands(chains []Chain, n Needs) []string {
	var out []string
	for _, p := range Programs(chains) {
		own := slices.DeleteFunc(slices.Clone(chains), func(c Chain) bool { return c.Program != p })
		switch p {
		case UFW:
			out = append(out, ufwCommands(own, n)...)
		case Firewalld:
			out = append(out, firewalldCommands(n)...)
		default:
			for _, c := range own {
				if c.plain() {
					out = append(out, n.rules(c)...)
				}
			}
		}
	}
	return out
}

// Persistent says whether the effect of the commands survives a restart of the machine.
func Persistent(chains []Chain) bool {
	return !slices.ContainsFunc(Programs(chains), func(p Program) bool { return p != UFW && p != Firewalld })
}

func hasChainOf(chains []Chain, h Hook) bool {
	return slices.ContainsFunc(chains, func(c Chain) bool { return c.Hook == h })
}

func ufwCommands(chains []Chain, n Needs) []string {
	var out []string
	if hasChainOf(chains, Input) {
		if n.Port > 0 {
			out = append(out, fmt.Sprintf("ufw allow %d", n.Port))
		}
		if n.Tunnel > 0 {
			out = append(out, fmt.Sprintf("ufw allow %d/udp", n.Tunnel))
		}
		for _, p := range n.Pods {
			out = append(out, fmt.Sprintf("ufw allow from %s", p))
		}
	}
	if hasChainOf(chains, Forward) {
		for _, p := range n.Pods {
			out = append(out, fmt.Sprintf("ufw route allow from %s", p), fmt.Sprintf("ufw route allow to %s", p))
		}
	}
	return out
}

// firewalldCommands returns the commands for firewalld. It accepts traffic that is translated for a Service by itself,
// and pods' packets when their source is in the zone trusted.
func firewalldCommands(n Needs) []string {
	var out []string
	ports := ""
	if n.Port > 0 {
		ports += fmt.Sprintf(" --add-port=%d/tcp --add-port=%d/udp", n.Port, n.Port)
	}
	if n.Tunnel > 0 {
		ports += fmt.Sprintf(" --add-port=%d/udp", n.Tunnel)
	}
	if ports != "" {
		out = append(out, "firewall-cmd --permanent"+ports)
	}
	for _, p := range n.Pods {
		out = append(out, fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s", p))
	}
	return append(out, "firewall-cmd --reload")
}

// rules returns the rules that a chain lacks, as commands of the program with which the chain was made.
func (n Needs) rules(c Chain) []string {
	var matches []string
	nft := c.Program == NFTables
	word := func(nftWord, iptablesWord string) {
		if nft {
			matches = append(matches, nftWord)
		} else {
			matches = append(matches, iptablesWord)
		}
	}
	port := func(proto string, port int) {
		word(fmt.Sprintf("%s dport %d", proto, port), fmt.Sprintf("-p %s --dport %d", proto, port))
	}
	if c.Hook == Input && n.Port > 0 {
		port("tcp", n.Port)
		port("udp", n.Port)
	}
	if c.Hook == Input && n.Tunnel > 0 {
		port("udp", n.Tunnel)
	}
	for _, p := range n.Pods {
		proto := "ip6"
		if p.Addr().Is4() {
			proto = "ip"
		}
		if !c.has(p) {
			continue
		}
		word(fmt.Sprintf("%s saddr %s", proto, p), fmt.Sprintf("-s %s", p))
		if c.Hook == Forward {
			word(fmt.Sprintf("%s daddr %s", proto, p), fmt.Sprintf("-d %s", p))
		}
	}
	var out []string
	for _, m := range matches {
		if nft {
			out = append(out, fmt.Sprintf("nft insert rule %s %s accept", c, m))
		} else {
			out = append(out, fmt.Sprintf("%s -I %s %s -j ACCEPT", c.iptables(), c.administratorsChain(), m))
		}
	}
	return out
}

// iptables returns the program that writes to the chain's table.
func (c Chain) iptables() string {
	program := "iptables"
	if c.Family == "ip6" {
		program = "ip6tables"
	}
	return program
}

// administratorsChain returns the name of the chain for an administrator's rules.
func (c Chain) administratorsChain() string {
	if c.Program == Docker {
		return dockerUser
	}
	return c.Name
}

// Advice returns the commands in one line.
func Advice(chains []Chain, n Needs) string {
	commands := Commands(chains, n)
	if len(commands) == 0 {
		return "accept there what the cluster's machines and pods send"
	}
	text := strings.Join(commands, "; ")
	if !Persistent(chains) {
		text += "; put the same where the firewall's rules are kept, or they are gone when the machine starts again"
	}
	return text
}
