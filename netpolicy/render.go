// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterconfig "github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// Names in the table besides those of a Ruleset. Those that exist per address family end in 4 or 6.
const (
	chainForward = "forward"
	chainInput   = "input"
	chainOutput  = "output"
	chainJudge   = "judge"
	chainStray   = "stray"
	chainHost    = "stray-to-node"
	chainRefuse  = "refuse"
	chainError   = "error"
	chainMidway  = "midway"
	chainNode    = "midway-from-node"
	mapIn        = "in"   // who is reached → its chain
	mapOut       = "out"  // who opens a connection → its chain
	setSelf      = "self" // no pod is kept from itself
	setOut       = "outs" // whose connections are judged when they open them
)

// noAddress is the source of errors from a machine that has no IPv4 address (RFC 7600): of a refusal, on one whose pods
// alone have some. No pod can pass for it: the pod network lets a pod send from its own addresses only.
const noAddress = "192.0.0.8"

// midway is a packet of a TCP connection that conntrack does not know, and that it does not open.
const midway = "ct state new tcp flags & (fin | syn | rst | ack) != syn"

// frame are the chains that all packets pass. They do not depend on any policy.
//
// The hooks come after translation of Services: forward for what is routed, input for what is for the node, behind
// IPVS' place there, which takes what is for a Service, and output for what IPVS sends on. Connections that the node
// itself opens are never judged: it always reaches its own pods. Those of its ingress proxy are, by its user: it serves
// external clients, and NetworkPolicies say whether it reaches a pod.
//
// What is not allowed is refused: a client learns at once that it may not. Of a connection that a change of policy
// forbids each end learns when it sends something, be it TCP's own probe whether the other end is there: a refusal
// answers a packet, and goes to who sent it. A refusal has the address of whom it stands for, and passes the output
// hook again: a reset is related to the connection that it refuses, which no segment of a pod's is.
//
// Who speaks first on a TCP connection that conntrack has forgotten would count as who opened it, which says nothing of
// who did: where one of its ends is restricted it is refused. Between the node and a pod that is so where the pod may
// not open any connection it likes; the node itself may.
//
// Errors by ICMP belong to connections, and are judged as these: their content is their sender's choice. One of a
// connection's ends may send them, and routers; a restricted pod that is neither end of it may not, or it would speak
// to an end with whom it may not. What conntrack makes nothing of has no one who opened it, and goes by its own
// addresses: no rule that asks more than a protocol fits it.
var frame = []struct {
	chain, hook string
	rules       []string
}{
	{chainRefuse, "", []string{
		"ct state invalid,untracked drop", "meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited",
	}},
	{chainStray, "", []string{
		"ip saddr vmap @out4", "ip daddr vmap @in4", "ip6 saddr vmap @out6", "ip6 daddr vmap @in6", "return",
	}},
	{chainHost, "", []string{"ip saddr vmap @out4", "ip6 saddr vmap @out6", "return"}},
	{chainError, "", []string{
		"ip saddr . ct original ip saddr @self4 return", "ip saddr . ct reply ip saddr @self4 return", "ip saddr . ip saddr @self4 goto " +
			chainRefuse,
		"ip6 saddr . ct original ip6 saddr @self6 return", "ip6 saddr . ct reply ip6 saddr @self6 return",
		"ip6 saddr . ip6 saddr @self6 goto " + chainRefuse,
		"return",
	}},
	{chainMidway, "", []string{
		"ip saddr . ip saddr @self4 goto " + chainRefuse, "ip daddr . ip daddr @self4 goto " + chainRefuse,
		"ip6 saddr . ip6 saddr @self6 goto " + chainRefuse, "ip6 daddr . ip6 daddr @self6 goto " + chainRefuse,
		"return",
	}},
	{chainJudge, "", []string{
		"meta l4proto { icmp, ipv6-icmp } ct state related jump " + chainError,
		"ct state invalid,untracked goto " + chainStray,
		midway + " jump " + chainMidway,
		"ct original ip saddr vmap @out4", "ct reply ip saddr vmap @in4",
		"ct original ip6 saddr vmap @out6", "ct reply ip6 saddr vmap @in6",
	}},
	{chainForward, "type filter hook forward priority filter; policy accept;", []string{"jump " + chainJudge}},
	{chainInput, "type filter hook input priority 110; policy accept;", []string{
		"icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } return",
		"meta l4proto { icmp, ipv6-icmp } ct state related jump " + chainError,
		"ct state invalid,untracked goto " + chainHost,
		"ct original ip saddr vmap @out4", "ct original ip6 saddr vmap @out6",
	}},
	{chainNode, "", []string{"ip daddr @outs4 goto " + chainRefuse, "ip6 daddr @outs6 goto " + chainRefuse, "return"}},
	{chainOutput, "type filter hook output priority filter; policy accept;", []string{
		"meta skuid " + strconv.Itoa(clusterconfig.IngressUser) + " ct direction original goto " + chainJudge,
		"fib saddr type local " + midway + " jump " + chainNode,
		"fib saddr type local return", "ip saddr " + noAddress + " return", "tcp flags & rst == rst ct state related return",
		"jump " + chainJudge,
	}},
}

// frameSets are the maps and sets of the frame, with their types.
var frameSets = []struct{ kind, name, as string }{
	{"map", mapIn + "4", "type ipv4_addr : verdict;"}, {"map", mapIn + "6", "type ipv6_addr : verdict;"},
	{"map", mapOut + "4", "type ipv4_addr : verdict;"}, {"map", mapOut + "6", "type ipv6_addr : verdict;"},
	{"set", setSelf + "4", "type ipv4_addr . ipv4_addr;"}, {"set", setSelf + "6", "type ipv6_addr . ipv6_addr;"},
	{"set", setOut + "4", "type ipv4_addr;"}, {"set", setOut + "6", "type ipv6_addr;"},
}

var setTypes = map[setKind]string{
	addresses4: "type ipv4_addr;", addresses6: "type ipv6_addr;",
	spans4: "type ipv4_addr; flags interval;", spans6: "type ipv6_addr; flags interval;", ports: "type inet_service; flags interval;",
	dns4: "type ipv4_addr . inet_service;", dns6: "type ipv6_addr . inet_service;",
}

func (k setKind) interval() bool { return k == spans4 || k == spans6 || k == ports }

// script writes nft's commands, all of which happen at once or not at all.
type script struct{ bytes.Buffer }

const tableRef = "inet " + nft.PolicyTable

func (s *script) line(format string, args ...any) { fmt.Fprintf(&s.Buffer, format+"\n", args...) }

// batch is how many elements one command has.
const batch = 1000

func (s *script) elements(verb, set string, elems []string) {
	for part := range slices.Chunk(elems, batch) {
		s.line("%s element %s %s { %s }", verb, tableRef, set, strings.Join(part, ", "))
	}
}

// whole replaces the table, whatever is there: packets see the old one or the new one.
func whole(r *Ruleset) []byte {
	var s script
	s.line("add table %s", tableRef)
	s.line("delete table %s", tableRef)
	if !r.empty() {
		s.table("add", r)
	}
	return s.Bytes()
}

// fresh makes the table where there is none, and fails where there is one. Nothing is deleted, so that the kernel does
// not wait until all processors have forgotten what was: a pod waits for this.
func fresh(r *Ruleset) []byte {
	var s script
	s.table("create", r)
	return s.Bytes()
}

func (s *script) table(verb string, r *Ruleset) {
	s.line("%s table %s", verb, tableRef)
	for _, f := range frameSets {
		s.line("add %s %s %s { %s }", f.kind, tableRef, f.name, f.as)
	}
	for _, f := range frame {
		s.line("add chain %s %s%s", tableRef, f.chain, hookOf(f.hook))
	}
	s.change(newRuleset(), r)
	for _, f := range frame { // when the maps are there that they name
		for _, rule := range f.rules {
			s.line("add rule %s %s %s", tableRef, f.chain, rule)
		}
	}
}

func hookOf(hook string) string {
	if hook == "" {
		return ""
	}
	return " { " + hook + " }"
}

// difference turns the table of one ruleset into that of another; nothing when they are the same.
func difference(from, to *Ruleset) []byte {
	switch {
	case from.empty() && !to.empty():
		return fresh(to)
	case to.empty() && !from.empty():
		return whole(to)
	}
	var s script
	if !to.empty() {
		s.change(from, to)
	}
	return s.Bytes()
}

// change writes what is new before what refers to it, and removes what is old after that.
func (s *script) change(from, to *Ruleset) {
	for _, name := range slices.Sorted(maps.Keys(to.Sets)) {
		set := to.Sets[name]
		was, there := from.Sets[name]
		if !there {
			s.line("add set %s %s { %s }", tableRef, name, setTypes[set.Kind])
		}
		s.elements("delete", name, missing(was.Elems, set.Elems))
		s.elements("add", name, missing(set.Elems, was.Elems))
	}
	for _, name := range slices.Sorted(maps.Keys(to.Chains)) {
		if _, there := from.Chains[name]; there {
			continue
		}
		s.line("add chain %s %s", tableRef, name)
		for _, rule := range to.Chains[name].text() {
			s.line("add rule %s %s %s", tableRef, name, rule)
		}
	}
	s.pods(mapIn, from.Pods[ingress], to.Pods[ingress])
	s.pods(mapOut, from.Pods[egress], to.Pods[egress])
	s.self(from.addresses(), to.addresses())
	for _, f := range []int{4, 6} {
		a, b := outElements(from, f), outElements(to, f)
		s.elements("delete", fmt.Sprint(setOut, f), missing(a, b))
		s.elements("add", fmt.Sprint(setOut, f), missing(b, a))
	}
	for _, name := range slices.Sorted(maps.Keys(from.Chains)) {
		if _, stays := to.Chains[name]; !stays {
			s.line("flush chain %s %s", tableRef, name)
			s.line("delete chain %s %s", tableRef, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from.Sets)) {
		if _, stays := to.Sets[name]; !stays {
			s.line("delete set %s %s", tableRef, name)
		}
	}
}

func missing(of, in map[string]bool) []string {
	var out []string
	for e := range of {
		if !in[e] {
			out = append(out, e)
		}
	}
	slices.Sort(out)
	return out
}

// pods changes a map. An element is deleted before it gets another verdict: both happen at once.
func (s *script) pods(name string, from, to map[netip.Addr]string) {
	removed, come := map[int][]string{}, map[int][]string{}
	for ip := range from {
		if to[ip] != from[ip] {
			removed[familyOf(ip)] = append(removed[familyOf(ip)], ip.String())
		}
	}
	for ip := range to {
		if to[ip] != from[ip] {
			come[familyOf(ip)] = append(come[familyOf(ip)], ip.String()+" : jump "+to[ip])
		}
	}
	for _, f := range []int{4, 6} {
		slices.Sort(removed[f])
		slices.Sort(come[f])
		s.elements("delete", fmt.Sprint(name, f), removed[f])
		s.elements("add", fmt.Sprint(name, f), come[f])
	}
}

// addresses are those of all restricted pods.
func (r *Ruleset) addresses() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for d := range r.Pods {
		for ip := range r.Pods[d] {
			out[ip] = true
		}
	}
	return out
}

func (s *script) self(from, to map[netip.Addr]bool) {
	for _, f := range []int{4, 6} {
		a, b := selfElements(from, f), selfElements(to, f)
		s.elements("delete", fmt.Sprint(setSelf, f), missing(a, b))
		s.elements("add", fmt.Sprint(setSelf, f), missing(b, a))
	}
}

func selfElements(ips map[netip.Addr]bool, family int) map[string]bool {
	out := map[string]bool{}
	for ip := range ips {
		if familyOf(ip) == family {
			out[ip.String()+" . "+ip.String()] = true
		}
	}
	return out
}

func outElements(r *Ruleset, family int) map[string]bool {
	out := map[string]bool{}
	for ip := range r.Pods[egress] {
		if familyOf(ip) == family {
			out[ip.String()] = true
		}
	}
	return out
}

// text is the chain in the kernel's words.
func (c Chain) text() []string {
	out := []string{"ct original ip saddr . ct reply ip saddr @self4 return", "ct original ip6 saddr . ct reply ip6 saddr @self6 return"}
	for _, r := range c.rules {
		out = append(out, r.text(c.direction)...)
	}
	return append(out, "goto "+chainRefuse)
}

// text is the rule in the kernel's words: twice where it is for both families and for ports, since nft knows what a
// port is only where it knows the family and the protocol. The protocol is the connection's, not the packet's, which
// may be an error about it.
func (r Rule) text(d direction) []string {
	if r.Family == 0 && r.Proto != "" {
		four, six := r, r
		four.Family, six.Family = 4, 6
		return append(four.text(d), six.text(d)...)
	}
	var words []string
	family := map[int]string{4: "ip", 6: "ip6"}[r.Family]
	if r.Proto != "" {
		words = append(words, "meta nfproto", map[int]string{4: "ipv4", 6: "ipv6"}[r.Family], "ct original protocol", r.Proto)
	}
	if r.Ports != "" {
		words = append(words, "ct reply proto-src", r.Ports)
	}
	if r.Peers != "" {
		who := "ct original"
		if d == egress {
			who = "ct reply"
		}
		words = append(words, who, family, "saddr")
		if r.DNS {
			words = append(words, ". ct reply proto-src")
		}
		words = append(words, "@"+r.Peers)
	}
	return []string{strings.Join(append(words, "return"), " ")}
}
