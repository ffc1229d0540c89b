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
	mapIn        = "in"   // destination → its chain
	mapOut       = "out"  // source that opens a connection → its chain
	setSelf      = "self" // pairs of a pod's own address: no pod is kept from itself
	setOut       = "outs" // sources whose connections are filtered when they open them
)

// noAddress is the source of ICMP errors from a machine without an IPv4 address (RFC 7600), such as a rejection on a
// node that has none although its pods have. No pod can use it: the pod network lets a pod send from its own addresses
// only.
const noAddress = "192.0.0.8"

// midConnection matches a TCP packet that belongs to no connection that conntrack knows, and that opens none.
const midConnection = "ct state new tcp flags & (fin | syn | rst | ack) != syn"

// baseChains are the chains that all packets pass. They do not depend on any policy.
//
// The hooks follow the translation of Services. forward handles routed packets. input handles packets to the node,
// after IPVS there, which takes packets to a Service. output handles packets that IPVS sends on. Connections that the
// node itself opens are never filtered: it always reaches its own pods. Those of its ingress proxy are filtered, by its
// user: it serves external clients, and NetworkPolicies decide whether it reaches a pod.
//
// What is not allowed is rejected, so that a client learns it at once. When a change of policy forbids a connection,
// each end learns it at its next packet, which may be TCP's keepalive: a rejection replies to a packet, and goes to its
// sender. A rejection has the destination's address as its source, and passes the output hook again. A reset is related
// to the connection that it rejects, which no segment of a pod is.
//
// If conntrack has lost a TCP connection, the sender of the next packet would count as the end that opened it, which
// may be wrong. So that packet is rejected where one of the ends is restricted. Between the node and a pod that is done
// only where the pod's egress is restricted: the node may open any connection.
//
// ICMP errors belong to connections, and are filtered like these, since their sender chooses their content. The ends of
// a connection and routers may send them. A restricted pod that is neither end may not: it could otherwise reach an end
// to which it may not connect. Packets that conntrack cannot assign to a connection are filtered by their own
// addresses: they match no rule with more than a protocol.
var baseChains = []struct {
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
		midConnection + " jump " + chainMidway,
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
		"fib saddr type local " + midConnection + " jump " + chainNode,
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

// script collects nft's commands, which are executed together or not at all.
type script struct{ bytes.Buffer }

const tableRef = "inet " + nft.PolicyTable

func (s *script) addLine(format string, args ...any) { fmt.Fprintf(&s.Buffer, format+"\n", args...) }

// batch is the number of elements in one command.
const batch = 1000

func (s *script) addElements(verb, set string, elems []string) {
	for part := range slices.Chunk(elems, batch) {
		s.addLine("%s element %s %s { %s }", verb, tableRef, set, strings.Join(part, ", "))
	}
}

// renderReplacement returns the commands that replace any existing table. Each packet meets the old table or the new
// one.
func renderReplacement(r *Ruleset) []byte {
	var s script
	s.addLine("add table %s", tableRef)
	s.addLine("delete table %s", tableRef)
	if !r.isEmpty() {
		s.table("add", r)
	}
	return s.Bytes()
}

// createCommands returns the commands that make the table. They fail if there is one. They delete nothing, so the
// kernel does not wait until no processor uses the old table: a pod waits for this.
func createCommands(r *Ruleset) []byte {
	var s script
	s.table("create", r)
	return s.Bytes()
}

func (s *script) table(verb string, r *Ruleset) {
	s.addLine("%s table %s", verb, tableRef)
	for _, f := range frameSets {
		s.addLine("add %s %s %s { %s }", f.kind, tableRef, f.name, f.as)
	}
	for _, f := range baseChains {
		s.addLine("add chain %s %s%s", tableRef, f.chain, hookOf(f.hook))
	}
	s.addChange(newRuleset(), r)
	for _, f := range baseChains { // after the maps that they name
		for _, rule := range f.rules {
			s.addLine("add rule %s %s %s", tableRef, f.chain, rule)
		}
	}
}

func hookOf(hook string) string {
	if hook == "" {
		return ""
	}
	return " { " + hook + " }"
}

// changeCommands returns the commands that change one ruleset's table to another's. It returns nothing when they are
// equal.
func changeCommands(from, to *Ruleset) []byte {
	switch {
	case from.isEmpty() && !to.isEmpty():
		return createCommands(to)
	case to.isEmpty() && !from.isEmpty():
		return renderReplacement(to)
	}
	var s script
	if !to.isEmpty() {
		s.addChange(from, to)
	}
	return s.Bytes()
}

// addChange adds new objects before those that refer to them, and removes old ones after that.
func (s *script) addChange(from, to *Ruleset) {
	for _, name := range slices.Sorted(maps.Keys(to.Sets)) {
		set := to.Sets[name]
		was, there := from.Sets[name]
		if !there {
			s.addLine("add set %s %s { %s }", tableRef, name, setTypes[set.Kind])
		}
		s.addElements("delete", name, missingIn(was.Elems, set.Elems))
		s.addElements("add", name, missingIn(set.Elems, was.Elems))
	}
	for _, name := range slices.Sorted(maps.Keys(to.Chains)) {
		if _, there := from.Chains[name]; there {
			continue
		}
		s.addLine("add chain %s %s", tableRef, name)
		for _, rule := range to.Chains[name].text() {
			s.addLine("add rule %s %s %s", tableRef, name, rule)
		}
	}
	s.pods(mapIn, from.Pods[ingress], to.Pods[ingress])
	s.pods(mapOut, from.Pods[egress], to.Pods[egress])
	s.loopbackRules(from.addresses(), to.addresses())
	for _, f := range []int{4, 6} {
		a, b := outElements(from, f), outElements(to, f)
		s.addElements("delete", fmt.Sprint(setOut, f), missingIn(a, b))
		s.addElements("add", fmt.Sprint(setOut, f), missingIn(b, a))
	}
	for _, name := range slices.Sorted(maps.Keys(from.Chains)) {
		if _, stays := to.Chains[name]; !stays {
			s.addLine("flush chain %s %s", tableRef, name)
			s.addLine("delete chain %s %s", tableRef, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from.Sets)) {
		if _, stays := to.Sets[name]; !stays {
			s.addLine("delete set %s %s", tableRef, name)
		}
	}
}

func missingIn(of, in map[string]bool) []string {
	var out []string
	for e := range of {
		if !in[e] {
			out = append(out, e)
		}
	}
	slices.Sort(out)
	return out
}

// pods changes a map. An element is deleted before it is added with another verdict, in the same transaction.
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
		s.addElements("delete", fmt.Sprint(name, f), removed[f])
		s.addElements("add", fmt.Sprint(name, f), come[f])
	}
}

// addresses returns the addresses of all restricted pods.
func (r *Ruleset) addresses() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for d := range r.Pods {
		for ip := range r.Pods[d] {
			out[ip] = true
		}
	}
	return out
}

func (s *script) loopbackRules(from, to map[netip.Addr]bool) {
	for _, f := range []int{4, 6} {
		a, b := selfElements(from, f), selfElements(to, f)
		s.addElements("delete", fmt.Sprint(setSelf, f), missingIn(a, b))
		s.addElements("add", fmt.Sprint(setSelf, f), missingIn(b, a))
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

// text returns the chain's rules in nft's syntax.
func (c Chain) text() []string {
	out := []string{"ct original ip saddr . ct reply ip saddr @self4 return", "ct original ip6 saddr . ct reply ip6 saddr @self6 return"}
	for _, r := range c.rules {
		out = append(out, r.text(c.direction)...)
	}
	return append(out, "goto "+chainRefuse)
}

// text returns the rule in nft's syntax. A rule with ports for both families becomes two, since nft accepts ports only
// after family and protocol. The protocol is the connection's, not the packet's, which may be an error about the
// connection.
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
