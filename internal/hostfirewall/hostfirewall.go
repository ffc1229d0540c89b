// SPDX-License-Identifier: Apache-2.0

// Package hostfirewall finds firewalls of other programs that drop what the cluster's machines and pods send, and says
// which commands let it through. It reads the kernel's rules and changes nothing: an accept in a table of our own ends
// that table alone, and a drop in any other one still drops (nft(8), "base chain"), so that only the firewall's owner
// can open it.
package hostfirewall

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Hook is a way of packets through the kernel on which a firewall stands.
type Hook string

// The hooks that matter: packets to the machine itself, and those that it passes on, as to and from pods.
const (
	Input   Hook = "input"
	Forward Hook = "forward"
)

// Program is who has made a chain, as far as it shows.
type Program string

// The programs that are distinguished. The last two are for rules whose owner is not known: what made them is known
// from how they are written.
const (
	UFW       Program = "ufw"
	Firewalld Program = "firewalld"
	Docker    Program = "Docker"
	IPTables  Program = "iptables"
	NFTables  Program = "nftables"
)

// Chain is one that drops or rejects all that its rules do not accept.
type Chain struct {
	Program Program
	Hook    Hook
	// Family is ip, ip6 or inet. Family, Table and Name are empty where only files say that there will be such a chain.
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

// word is what nft and a shell take as one word and nothing else. The kernel takes any name.
var word = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// plain says whether the chain can be named in a command.
func (c Chain) plain() bool { return word.MatchString(c.Table) && word.MatchString(c.Name) }

// owner says who a chain of iptables' table filter belongs to, from the names of all the chains there. Where both are,
// ufw's commands open FORWARD too, and are kept.
func owner(has func(chain string) bool, hook Hook) Program {
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

// Programs are those of the chains, each once.
func Programs(chains []Chain) []Program {
	var out []Program
	for _, c := range chains {
		if !slices.Contains(out, c.Program) {
			out = append(out, c.Program)
		}
	}
	return out
}

// Describe says which firewall stands in whose way.
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
