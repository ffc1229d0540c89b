// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strings"
)

// direction is the end of a connection that a policy restricts.
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

// Ruleset is the content of the node's table, as plain data. render.go has the kernel's syntax.
//
// A connection is filtered by its source, its destination after translation, its protocol, and its destination port.
// Each of its packets, in both directions, is filtered by these four. So the result for a connection's first packet
// holds for all, and a connection that a change of policy forbids ends at its next packet.
type Ruleset struct {
	// Pods names the chain that filters an address, for each direction. A missing address is not restricted.
	Pods [2]map[netip.Addr]string
	// Chains contain what is allowed; everything else is rejected. They are named after their content.
	Chains map[string]Chain
	// Sets are named after what they stand for, or after their content.
	Sets map[string]Set
}

// Chain allows what any of its rules allows.
type Chain struct {
	direction direction
	rules     []Rule // sorted
}

// Rule allows connections that match all of its fields. Empty fields are not compared.
type Rule struct {
	Family int    // 4 or 6 when Peers is set
	Peers  string // the name of a set: addresses of the other end
	DNS    bool   // the other end is the cluster's DNS
	Proto  string // tcp, udp, sctp
	Ports  string // a port, or @ and the name of a set of ports; needs Proto
}

// Set is an nftables set of addresses, intervals of addresses, ports, or addresses with a port.
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

// closedChain is the chain of pods for which nothing can be allowed: their policies exceed the budget, or the API has
// not shown the pod.
const closedChain = "closed"

func newRuleset() *Ruleset {
	return &Ruleset{
		Pods:   [2]map[netip.Addr]string{{}, {}},
		Chains: map[string]Chain{}, Sets: map[string]Set{},
	}
}

// isEmpty reports whether no pod is restricted: then there is no table.
func (r *Ruleset) isEmpty() bool { return len(r.Pods[ingress])+len(r.Pods[egress]) == 0 }

// hashName returns a name for words: 120 bits, so that an attacker cannot find two selections with the same name.
func hashName(words ...string) string {
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
