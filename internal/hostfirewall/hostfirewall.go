// SPDX-License-Identifier: Apache-2.0

// Package hostfirewall finds firewalls of other programs that drop traffic of the cluster's machines and pods, and
// returns the commands that let this traffic through. It reads the kernel's rules and changes nothing. An accept in a
// table of coracle's own would end the evaluation of that table alone, and a drop in any other table would still drop
// the packet (nft(8), "base chain"). So only the firewall's owner can open it.
package hostfirewall

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Hook is a hook of the kernel's packet path at which a firewall's chain is attached.
type Hook string

// The hooks that matter: input, for packets to the machine itself, and forward, for packets that it forwards, as to and
// from pods.
const (
	Input   Hook = "input"
	Forward Hook = "forward"
)

// Program is the program that has made a chain, as far as the chain shows it.
type Program string

// The programs that are distinguished. The last two are for rules whose program is not known: only the form of the
// rules is.
const (
	UFW       Program = "ufw"
	Firewalld Program = "firewalld"
	Docker    Program = "Docker"
	IPTables  Program = "iptables"
	NFTables  Program = "nftables"
)

// Chain is a chain that drops or rejects every packet that its rules do not accept.
type Chain struct {
	Program Program
	Hook    Hook
	// Family is ip, ip6 or inet. Family, Table and Name are empty when the chain is not in the kernel yet, and only
	// files show that there will be one.
	Family, Table, Name string
}

func (c Chain) String() string {
	if c.Name == "" {
		return ""
	}
	text := c.Family + " " + c.Table + " " + c.Name
	if !c.plain() {
		text = fmt.Sprintf("%s %q %q", c.Family, c.Table, c.Name)
	}
	return text
}

// wordPattern matches a name that nft and a shell take as one plain word. The kernel accepts any name.
var wordPattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// plain says whether the chain's names can be written in a command.
func (c Chain) plain() bool {
	return wordPattern.MatchString(c.Table) && wordPattern.MatchString(c.Name)
}

// ownerOf returns the program to which a chain of iptables' table filter belongs, by the names of all chains of that
// table. If there are chains of both ufw and Docker, it returns UFW: ufw's commands also open FORWARD, and they are
// persistent.
func ownerOf(has func(chain string) bool, hook Hook) Program {
	switch {
	case hook == Input && has("ufw-user-input"), hook == Forward && has("ufw-user-forward"):
		return UFW
	case hook == Input && has("ufw6-user-input"), hook == Forward && has("ufw6-user-forward"):
		return UFW
	case hook == Forward && has(dockerUser):
		return Docker
	}
	return IPTables
}

// Programs returns the programs of the chains, each once.
func Programs(chains []Chain) []Program {
	var out []Program
	for _, c := range chains {
		if !slices.Contains(out, c.Program) {
			out = append(out, c.Program)
		}
	}
	return out
}

// Describe says which firewalls drop which traffic.
func Describe(chains []Chain) string {
	var programs []string
	for _, p := range Programs(chains) {
		var ways []string
		for _, way := range []struct {
			hook Hook
			what string
		}{{Input, "what comes to this machine"}, {Forward, "what pods send and receive"}} {
			var names []string
			closed := false
			for _, c := range chains {
				if c.Program == p && c.Hook == way.hook {
					closed = true
					if c.Name != "" {
						names = append(names, c.String())
					}
				}
			}
			switch {
			case len(names) > 0:
				ways = append(ways, fmt.Sprintf("%s (%s)", way.what, strings.Join(names, ", ")))
			case closed:
				ways = append(ways, way.what)
			}
		}
		programs = append(programs, fmt.Sprintf("%s drops %s, where no rule of its own accepts it", p, strings.Join(ways, " and ")))
	}
	return strings.Join(programs, "; ")
}
