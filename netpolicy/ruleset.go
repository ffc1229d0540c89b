// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strings"
)

// direction is which end of a connection a policy protects.
type direction int

const (
	ingress direction = iota
	egress
)

func (d direction) String() string {
	if d == ingress {
		return "in"
	}
	return "out"
}

// Ruleset is what the node's table holds. It is plain data: render.go says how the kernel spells it.
//
// A connection is judged by who opened it, whom it reaches after translation, its protocol, and the port that it
// reaches there: each of its packets, in both directions, is judged by these four. So what is true of a connection's
// first packet is true of all, and one that a change of policy forbids ends at its next packet.
type Ruleset struct {
	// Pods names the chain that judges an address, for each direction. An address that is not there is not restricted.
	Pods [2]map[netip.Addr]string
	// Chains hold what is allowed; all else is refused. They are named after what they hold.
	Chains map[string]Chain
	// Sets are named after what they stand for, or after what they hold.
	Sets map[string]Set
}

// Chain allows what any of its rules allows.
type Chain struct {
	direction direction
	rules     []Rule // sorted
}

// Rule allows connections for which all that it names is so. What is empty is not asked for.
type Rule struct {
	Family int    // 4 or 6 when Peers is set
	Peers  string // a set of addresses: of the other end
	DNS    bool   // the other end is the cluster's DNS
	Proto  string // tcp, udp, sctp
	Ports  string // a port, or @ and a set of ports; with Proto
}

// Set is a set of the kernel's.
type Set struct {
	Kind  setKind
	Elems map[string]bool
}

type setKind int

const (
	addresses4 setKind = iota
	addresses6
	spans4
	spans6
	ports
	dns4
	dns6
)

// The chain of pods about which nothing can be allowed: their policies are over the budget, or who they are is not
// known.
const closed = "closed"

func newRuleset() *Ruleset {
	return &Ruleset{
		Pods:   [2]map[netip.Addr]string{{}, {}},
		Chains: map[string]Chain{}, Sets: map[string]Set{},
	}
}

// empty says that no pod is restricted: then there is no table.
func (r *Ruleset) empty() bool { return len(r.Pods[ingress])+len(r.Pods[egress]) == 0 }

// hash is a name for what words say: 120 bits, so that an attacker cannot find two selections with one name.
func hash(words ...string) string {
	h := sha256.New()
	for _, w := range words {
		h.Write([]byte(w))
		h.Write([]byte{0})
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)[:15]))
}

func (r Rule) key() string {
	dns := ""
	if r.DNS {
		dns = "dns"
	}
	return strings.Join([]string{string(rune('0' + r.Family)), r.Peers, dns, r.Proto, r.Ports}, " ")
}
