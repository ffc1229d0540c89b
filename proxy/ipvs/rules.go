// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// Names of the sets and maps.
const (
	setClusterIPs = "cluster-ips"       // packets to these from outside the cluster are masqueraded
	setMasquerade = "masqueraded"       // packets to these from any source are masqueraded
	setShortcut   = "shortcut"          // packets of pods and of the node to these go to a cluster IP
	setDropped    = "dropped"           // there are endpoints, but none that may be used here
	setGuarded    = "guarded"           // only allowed sources may connect
	setAllowed    = "allowed"           // the allowed sources
	setAddresses  = "service-addresses" // on our device
	setPorts      = "service-ports"     // of these addresses, the open ports
	setHairpin    = "hairpin"           // packets from a pod to itself
	setKept       = "external-local"    // clients keep their address, except this node
)

var setNames = []string{setClusterIPs, setMasquerade, setShortcut, setDropped, setGuarded, setAllowed, setAddresses, setPorts, setHairpin,
	setKept}

// masqueradeMark is upstream's bit, so that other programs' rules for it still work.
const masqueradeMark = "0x4000"

// ruleFamily has what differs between the rules of the two families.
type ruleFamily struct {
	ip, addr, icmp string
}

var (
	rules4 = ruleFamily{"ip", "ipv4_addr", "icmp"}
	rules6 = ruleFamily{"ip6", "ipv6_addr", "ipv6-icmp"}
)

// ruleView is the input of the rules, beside the contents of the sets.
type ruleView struct {
	family       ruleFamily
	clusterCIDRs []netip.Prefix // of the family
	serviceCIDRs []netip.Prefix // of the family
}

func (v ruleView) sets() []knftables.Object {
	key := v.family.addr + " . inet_proto . inet_service"
	types := map[string]string{
		setClusterIPs: v.family.addr, setAddresses: v.family.addr, setMasquerade: key, setDropped: key, setGuarded: key, setPorts: key,
		setKept:    key,
		setAllowed: key + " . " + v.family.addr, setHairpin: v.family.addr + " . " + key,
	}
	var out []knftables.Object
	for _, name := range setNames {
		if name == setShortcut {
			out = append(out, &knftables.Map{Name: name, Type: key + " : " + v.family.addr + " . inet_service"})
			continue
		}
		s := &knftables.Set{Name: name, Type: types[name]}
		if name == setAllowed {
			s.Flags = []knftables.SetFlag{knftables.IntervalFlag}
		}
		out = append(out, s)
	}
	return out
}

// chain is a base chain of nftables, with its hook and its rules.
type chain struct {
	name     string
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
	rules    []string
}

// chains returns all rules. An arriving packet passes the hooks in this order: prerouting (filter, nat); routing, which
// finds the address local; input at priority 0; and then IPVS, at 99, which rewrites it and sends it by output and
// postrouting. A packet that the node itself sends meets IPVS in output, after the nat chain there.
func (v ruleView) chains() []chain {
	ip := v.family.ip
	at := ip + " daddr . meta l4proto . th dport "
	sources := []string{"ct state new " + at + "@" + setGuarded + " " + at + ". " + ip + " saddr != @" + setAllowed + " drop"}
	cluster := anonymousSet(v.clusterCIDRs)
	mark := "mark set mark or " + masqueradeMark
	nat := []string{
		// A pod of another node belongs to the cluster, too: it keeps its address on its way to a cluster IP.
		ip + " daddr @" + setClusterIPs + " " + ip + " saddr != " + cluster + " " + mark,
		at + "@" + setMasquerade + " " + mark,
	}
	to := "dnat " + ip + " to " + at + "map @" + setShortcut
	nat = append(nat,
		ip+" saddr "+cluster+" "+to,
		// The node's own requests have the Service's address as their source, to which no endpoint could reply.
		at+"@"+setKept+" fib saddr type local "+mark,
		"fib saddr type local "+to,
		at+"@"+setDropped+" drop",
	)
	input := []string{
		"ct state established,related accept",
		ip + " daddr @" + setAddresses + " meta l4proto { tcp, udp, sctp } " + at + "!= @" + setPorts + " reject",
		ip + " daddr @" + setAddresses + " meta l4proto != { " + v.family.icmp + ", tcp, udp, sctp } drop",
	}
	var unallocated []string
	if len(v.serviceCIDRs) > 0 {
		unallocated = []string{"ct state new " + ip + " daddr " + anonymousSet(v.serviceCIDRs) + " drop"}
	}
	return []chain{
		{"filter-prerouting", knftables.FilterType, knftables.PreroutingHook, "dstnat-10", sources},
		{"filter-output-sources", knftables.FilterType, knftables.OutputHook, "dstnat-10", sources},
		{"nat-prerouting", knftables.NATType, knftables.PreroutingHook, "dstnat", nat},
		{"nat-output", knftables.NATType, knftables.OutputHook, "dstnat", nat},
		{"filter-input", knftables.FilterType, knftables.InputHook, "filter", input},
		{"filter-forward", knftables.FilterType, knftables.ForwardHook, "filter", unallocated},
		{"nat-postrouting", knftables.NATType, knftables.PostroutingHook, "srcnat", []string{
			"mark and " + masqueradeMark + " != 0 mark set mark xor " + masqueradeMark + " masquerade fully-random",
			ip + " saddr . " + ip + " daddr . meta l4proto . th dport @" + setHairpin + " masquerade fully-random",
		}},
	}
}

// anonymousSet returns the prefixes as nftables' text of an anonymous set.
func anonymousSet(prefixes []netip.Prefix) string {
	masked := convert.Slice(prefixes, func(p netip.Prefix) string { return p.Masked().String() })
	return "{ " + strings.Join(masked, ", ") + " }"
}

// rulesWriter keeps one table of the kernel up to date.
type rulesWriter struct {
	nft     knftables.Interface
	view    ruleView
	applied map[member]bool // nil: the kernel's elements are unknown
	// verified is the kernel's generation in which the table last had all rules.
	verified uint32
}

// apply writes the difference of the sets' contents. With full, or when the kernel's contents are unknown, it writes
// everything, in one transaction without a gap. Only members in touched may differ from the last apply; nil means all.
func (w *rulesWriter) apply(ctx context.Context, want map[string]map[string]bool, touched map[member]bool, full bool) error {
	tx := w.nft.NewTransaction()
	have := w.applied
	w.applied = nil
	whole := full || have == nil
	if whole {
		have = map[member]bool{}
		w.rebuild(tx)
	}
	if whole || touched == nil {
		touched = maps.Clone(have)
		for set := range want {
			for text := range want[set] {
				touched[member{set, text}] = true
			}
		}
	}
	var removed, come []member
	for m := range touched {
		switch wanted := want[m.set][m.text]; {
		case have[m] && !wanted:
			removed = append(removed, m)
		case wanted && !have[m]:
			come = append(come, m)
		}
	}
	slices.SortFunc(removed, compareMembers)
	slices.SortFunc(come, compareMembers)
	for _, m := range removed {
		tx.Delete(element(m.set, m.text))
		delete(have, m)
	}
	for _, m := range come {
		tx.Add(element(m.set, m.text))
		have[m] = true
	}
	if tx.NumOperations() > 0 {
		if err := w.nft.Run(ctx, tx); err != nil {
			return fmt.Errorf("writing the rules around IPVS: %w", err)
		}
	}
	w.applied = have
	return nil
}

func compareMembers(a, b member) int {
	return cmp.Or(cmp.Compare(a.set, b.set), cmp.Compare(a.text, b.text))
}

// intact reports whether the table exists with as many rules in each chain as were written. It does not count the sets'
// elements. Checking the rules costs one request to the kernel as long as no program has changed any table of this
// host.
func (w *rulesWriter) intact(t nft.Table) (bool, error) {
	if ok, err := nft.Exists(t); err != nil || !ok {
		return false, err
	}
	generation, err := nft.Generation()
	if err != nil || w.applied == nil || generation == w.verified {
		return true, err
	}
	have, err := nft.CountRules(t)
	if err != nil {
		return false, err
	}
	want := map[string]int{}
	for _, c := range w.view.chains() {
		if len(c.rules) > 0 {
			want[c.name] = len(c.rules)
		}
	}
	if !maps.Equal(want, have) {
		return false, nil
	}
	w.verified = generation
	return true, nil
}

// rebuild replaces the table, whatever it contains.
func (w *rulesWriter) rebuild(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: new("Services, beside IPVS")})
	for _, s := range w.view.sets() {
		tx.Add(s)
	}
	for _, c := range w.view.chains() {
		tx.Add(&knftables.Chain{Name: c.name, Type: &c.kind, Hook: &c.hook, Priority: &c.priority})
		for _, r := range c.rules {
			tx.Add(&knftables.Rule{Chain: c.name, Rule: r})
		}
	}
}

func element(set, text string) *knftables.Element {
	key, value, isMap := strings.Cut(text, " : ")
	e := &knftables.Element{Key: strings.Fields(key)}
	if isMap {
		e.Map, e.Value = set, []string{strings.Join(strings.Fields(value), " . ")}
	} else {
		e.Set = set
	}
	return e
}
