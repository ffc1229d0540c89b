// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Needs is what has to be let through.
type Needs struct {
	// Port is where machines reach this one, by TCP and UDP.
	Port int
	// Tunnel is the UDP port for packets between nodes' pods; 0 where they need none.
	Tunnel int
	// Pods are the networks of all pods of the cluster. Those of Services never are in a packet that a firewall sees:
	// they are translated before.
	Pods []netip.Prefix
}

// Concern are the chains that packets of the cluster pass: where there are no pods, or none of a chain's family,
// nothing is forwarded for it.
func (n Needs) Concern(chains []Chain) []Chain {
	return slices.DeleteFunc(slices.Clone(chains), func(c Chain) bool {
		return c.Hook == Forward && !slices.ContainsFunc(n.Pods, func(p netip.Prefix) bool { return c.has(p) })
	})
}

// has says whether packets of a network pass the chain.
func (c Chain) has(p netip.Prefix) bool {
	return c.Family == "" || c.Family == "inet" || p.Addr().Is4() == (c.Family == "ip")
}

// dockerUser is the chain that Docker leaves to the administrator, and goes through first.
const dockerUser = "DOCKER-USER"

// Commands are what an administrator types, in this order, so that the firewalls let the cluster through. Each may be
// typed again. There is none for a chain whose name is no word.
func Commands(chains []Chain, n Needs) []string {
	var out []string
	for _, p := range Programs(chains) {
		own := slices.DeleteFunc(slices.Clone(chains), func(c Chain) bool { return c.Program != p })
		switch p {
		case UFW:
			out = append(out, ufw(own, n)...)
		case Firewalld:
			out = append(out, firewalld(n)...)
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

// Persistent says whether the commands survive the next start of the machine by themselves.
func Persistent(chains []Chain) bool {
	return !slices.ContainsFunc(Programs(chains), func(p Program) bool { return p != UFW && p != Firewalld })
}

func closes(chains []Chain, h Hook) bool {
	return slices.ContainsFunc(chains, func(c Chain) bool { return c.Hook == h })
}

func ufw(chains []Chain, n Needs) []string {
	var out []string
	if closes(chains, Input) {
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
	if closes(chains, Forward) {
		for _, p := range n.Pods {
			out = append(out, fmt.Sprintf("ufw route allow from %s", p), fmt.Sprintf("ufw route allow to %s", p))
		}
	}
	return out
}

// firewalld takes what is translated for a Service by itself, and pods' packets where their source is of the zone
// trusted.
func firewalld(n Needs) []string {
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

// rules are those that a chain lacks, as commands of the program that it is written with.
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

// iptables is the program that writes to the chain's table.
func (c Chain) iptables() string {
	program := "iptables"
	if c.Family == "ip6" {
		program = "ip6tables"
	}
	return program
}

// administratorsChain is the chain where an administrator's rules belong.
func (c Chain) administratorsChain() string {
	if c.Program == Docker {
		return dockerUser
	}
	return c.Name
}

// Advice is what to type, in one line.
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
