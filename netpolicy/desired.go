// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// Result is the desired ruleset of a node, with the pods and namespaces to which it lets nothing pass.
type Result struct {
	Ruleset *Ruleset
	// Unknown are the IDs of sandboxes that are closed because the API has not shown the pod, and so its labels, (yet).
	Unknown map[string]bool
	// OverBudget has the namespaces whose restricted pods are closed, with the reason.
	OverBudget map[string]string

	namespaces []*namespaceRules
}

// Desired computes the table of a node. It is pure.
func Desired(s State, limits Limits) Result {
	r := Result{Ruleset: newRuleset(), Unknown: map[string]bool{}, OverBudget: map[string]string{}}
	if len(s.Policies) == 0 {
		return r
	}
	c := index(s)
	local := map[string][]Sandbox{}
	var families []int
	for _, b := range s.Sandboxes {
		if len(c.policies[b.Namespace]) > 0 {
			local[b.Namespace] = append(local[b.Namespace], b)
		}
		for _, ip := range b.IPs {
			families = append(families, familyOf(ip))
		}
	}
	slices.Sort(families)
	families = slices.Compact(families)
	var namespaces []*namespaceRules
	for _, namespace := range slices.Sorted(maps.Keys(local)) {
		p := &namespaceRules{
			c: c, dns: s.DNS, namespace: namespace, families: families, limits: limits, ruleset: newRuleset(),
			memo: map[string][]Rule{}, members: map[string][]ref{}, unknown: r.Unknown,
			selects: map[*networkingv1.NetworkPolicy]labels.Selector{}, selections: map[*networkingv1.NetworkPolicyPeer]selected{},
			blocks: map[*networkingv1.IPBlock][]span{},
		}
		p.compute(local[namespace])
		if refused, ok := s.Refused[namespace]; ok && p.exceeded == "" && refused.Hash == hashName(string(p.tableAlone())) {
			p.setExceeded("the kernel refuses them: %s", refused.Why)
			p.close()
		}
		namespaces = append(namespaces, p)
	}
	addNamespaces(namespaces, limits, r)
	r.namespaces = namespaces
	return r
}

// namespaceRules computes the rules for the pods of one namespace.
type namespaceRules struct {
	c         *cluster
	dns       DNS
	namespace string
	families  []int // those of this node's pods
	limits    Limits
	ruleset   *Ruleset
	exceeded  string // why the budget is exceeded
	rules     int
	elements  int
	work      int
	memo      map[string][]Rule // computed rules by policy, its rule and the numbers of its named ports
	members   map[string][]ref  // by selection
	unknown   map[string]bool
	// Parsed selectors and blocks of policies, each parsed once.
	selects    map[*networkingv1.NetworkPolicy]labels.Selector
	selections map[*networkingv1.NetworkPolicyPeer]selected
	blocks     map[*networkingv1.IPBlock][]span
}

// selected is a selection of pods, with the name of its set in the kernel.
type selected struct {
	selection
	name string
}

func (p *namespaceRules) compute(sandboxes []Sandbox) {
	for _, b := range sandboxes {
		pod := p.c.podOf(b)
		if pod == nil {
			p.unknown[b.ID] = true
			p.restrict(b, ingress, closedChain)
			p.restrict(b, egress, closedChain)
			continue
		}
		for _, d := range []direction{ingress, egress} {
			if name, restricted := p.chain(pod, d); restricted {
				p.restrict(b, d, name)
			}
		}
	}
	if p.exceeded != "" {
		p.close()
	}
}

func (p *namespaceRules) restrict(b Sandbox, d direction, chain string) {
	for _, ip := range b.IPs {
		p.ruleset.Pods[d][ip] = chain
	}
}

// close discards all rules of the namespace and closes its restricted pods.
func (p *namespaceRules) close() {
	was := p.ruleset
	p.ruleset = newRuleset()
	for d := range was.Pods {
		for ip := range was.Pods[d] {
			p.ruleset.Pods[d][ip] = closedChain
		}
	}
}

// chain makes the chain for a pod, and returns whether the pod is restricted at all.
func (p *namespaceRules) chain(pod *corev1.Pod, d direction) (string, bool) {
	restricted := false
	var rules []Rule
	for _, policy := range p.c.policies[p.namespace] {
		if !appliesTo(policy, d) || !p.selectorOf(policy).Matches(labels.Set(pod.Labels)) {
			continue
		}
		restricted = true
		if p.exceeded != "" {
			return closedChain, true
		}
		if rules = append(rules, p.policyRules(policy, d, pod)...); len(rules) > 2*p.limits.RulesOfPod {
			if rules = sortRules(rules); len(rules) > p.limits.RulesOfPod {
				break
			}
		}
	}
	if !restricted {
		return "", false
	}
	rules = sortRules(rules)
	if slices.Contains(rules, Rule{}) {
		return "", false // everything is allowed, which is no restriction
	}
	if len(rules) > p.limits.RulesOfPod {
		p.setExceeded("more than %d rules for one pod", p.limits.RulesOfPod)
	}
	words := append([]string{d.String()}, convert.Slice(rules, Rule.key)...)
	name := d.String() + "-" + hashName(words...)
	if _, ok := p.ruleset.Chains[name]; !ok {
		p.ruleset.Chains[name] = Chain{d, rules}
		p.charge(&p.rules, len(rules)+1, p.limits.Rules, "rules")
	}
	return name, true
}

// sortRules sorts the rules and removes duplicates.
func sortRules(rules []Rule) []Rule {
	slices.SortFunc(rules, func(a, b Rule) int { return strings.Compare(a.key(), b.key()) })
	return slices.Compact(rules)
}

// selectorOf returns the selector of the pods to which a policy applies.
func (p *namespaceRules) selectorOf(policy *networkingv1.NetworkPolicy) labels.Selector {
	cost := 1 + costOf(&policy.Spec.PodSelector)
	if out, ok := p.selects[policy]; ok {
		p.spendWork(cost)
		return out
	}
	if !p.spendWork(cost * parseCost) {
		return labels.Everything() // each pod that it may select is closed
	}
	out := selector(&policy.Spec.PodSelector)
	p.selects[policy] = out
	return out
}

// selectionOf parses a peer that is no ipBlock.
func (p *namespaceRules) selectionOf(peer *networkingv1.NetworkPolicyPeer) selected {
	if out, ok := p.selections[peer]; ok {
		return out
	}
	if !p.spendWork((1 + costOf(peer.NamespaceSelector) + costOf(peer.PodSelector)) * parseCost) {
		return selected{selection{namespace: p.namespace, pods: labels.Nothing(), cost: 1}, "over the budget"}
	}
	s := selectionOf(p.namespace, *peer)
	out := selected{s, s.key()}
	p.selections[peer] = out
	return out
}

// spansOf parses an ipBlock.
func (p *namespaceRules) spansOf(b *networkingv1.IPBlock) []span {
	if out, ok := p.blocks[b]; ok {
		return out
	}
	if !p.spendWork((1 + len(b.Except)) * parseCost) {
		return nil
	}
	out := spansOf(b)
	p.blocks[b] = out
	return out
}

// appliesTo reports whether a policy restricts the direction. The API sets policyTypes. Without it the meaning is the
// same.
func appliesTo(policy *networkingv1.NetworkPolicy, d direction) bool {
	types := policy.Spec.PolicyTypes
	if len(types) == 0 {
		return d == ingress || len(policy.Spec.Egress) > 0
	}
	if d == ingress {
		return slices.Contains(types, networkingv1.PolicyTypeIngress)
	}
	return slices.Contains(types, networkingv1.PolicyTypeEgress)
}

func (p *namespaceRules) policyRules(policy *networkingv1.NetworkPolicy, d direction, pod *corev1.Pod) []Rule {
	var out []Rule
	if d == ingress {
		for i, r := range policy.Spec.Ingress {
			if !p.spendWork(1 + len(r.Ports)) {
				return nil
			}
			// Named ports are looked up in the pod itself.
			g := groupPorts(r.Ports, func(proto, name string) []string { return portNumbers(pod, proto, name) })
			out = append(out, p.cachedRules(policy, d, i, g, func() []Rule {
				none := len(r.Ports) > 0 && len(g) == 0
				return p.combinePorts(append(p.peersOf(r.From, none), p.proxyEnds(r.From, none)...), g, len(r.Ports) == 0)
			})...)
		}
		return out
	}
	for i, r := range policy.Spec.Egress {
		if !p.spendWork(1) {
			return nil
		}
		out = append(out, p.cachedRules(policy, d, i, nil, func() []Rule { return p.egressRule(r) })...)
	}
	return out
}

// cachedRules calls f for the rules that one rule of a policy gives for the ports g, and caches the result: all pods of
// a Deployment have the same rules.
func (p *namespaceRules) cachedRules(
	policy *networkingv1.NetworkPolicy, d direction, rule int, g map[string][]portSpan,
	f func() []Rule,
) []Rule {
	k := fmt.Sprint(policy.Name, " ", d, " ", rule, " ", g) // maps are printed in order
	if out, ok := p.memo[k]; ok {
		return out
	}
	var out []Rule
	if p.exceeded == "" {
		out = f()
	}
	p.memo[k] = out
	return out
}

func (p *namespaceRules) egressRule(r networkingv1.NetworkPolicyEgressRule) []Rule {
	// Named ports are looked up in the peers: each number needs a set of the pods that have it.
	p.spendWork(len(r.Ports))
	g := groupPorts(r.Ports, func(string, string) []string { return nil })
	out := p.combinePorts(p.peersOf(r.To, len(r.Ports) > 0 && len(g) == 0), g, len(r.Ports) == 0)
	for _, port := range r.Ports {
		if port.Port != nil && port.Port.Type == intstr.String {
			out = append(out, p.namedEgress(r.To, protocol(port.Protocol), port.Port.StrVal)...)
		}
	}
	if p.toDNS(r.To) {
		for _, proto := range p.dns.protocolsOf(r.Ports) {
			out = append(out, p.dnsRules(proto)...)
		}
	}
	return out
}

func (p *namespaceRules) toDNS(peers []networkingv1.NetworkPolicyPeer) bool {
	if len(peers) == 0 {
		return true
	}
	for i := range peers {
		if peers[i].IPBlock != nil {
			if p.dns.isIn(p.spansOf(peers[i].IPBlock)) {
				return true
			}
		} else if s := p.selectionOf(&peers[i]); p.spendWork(s.cost) && p.c.matches(s.selection, dnsNamespace, dnsLabels) {
			return true
		}
	}
	return false
}

func (p *namespaceRules) dnsRules(proto string) []Rule {
	var out []Rule
	for _, f := range p.families {
		kind := dns4
		if f == 6 {
			kind = dns6
		}
		if elems := p.dns.elements(f == 4); len(elems) > 0 {
			out = append(out, Rule{Family: f, Peers: p.insert("dns"+strconv.Itoa(f), kind, func() map[string]bool { return elems }),
				DNS: true, Proto: proto})
		}
	}
	return out
}

// namedEgress returns the rules for a named port of the pods that the peers select.
func (p *namespaceRules) namedEgress(peers []networkingv1.NetworkPolicyPeer, proto, name string) []Rule {
	every := selected{everyPod(), everyPod().key()}
	if len(peers) == 0 {
		return p.namedPorts(every.name, p.refs(every), proto, name)
	}
	var out []Rule
	for i := range peers {
		if peers[i].IPBlock == nil {
			s := p.selectionOf(&peers[i])
			out = append(out, p.namedPorts(s.name, p.refs(s), proto, name)...)
			continue
		}
		// Addresses have no names for ports, but pods with addresses in the block have.
		spans, all := p.spansOf(peers[i].IPBlock), p.refs(every)
		if !p.spendWork(len(all) + len(spans)) {
			return nil
		}
		out = append(out, p.namedPorts(fmt.Sprint("block ", spans), refsWithin(all, spans), proto, name)...)
	}
	return out
}

func refsWithin(refs []ref, spans []span) []ref {
	var out []ref
	for _, r := range refs {
		var ips []netip.Addr
		for _, ip := range r.ips {
			if contains(spans, ip) {
				ips = append(ips, ip)
			}
		}
		if len(ips) > 0 {
			out = append(out, ref{r.pod, ips})
		}
	}
	return out
}

// namedPorts makes a set for each port number of the name.
func (p *namespaceRules) namedPorts(key string, refs []ref, proto, name string) []Rule {
	byPort := map[string][]ref{}
	if !p.spendWork(len(refs)) {
		return nil
	}
	for _, r := range refs {
		for _, port := range portNumbers(r.pod, proto, name) {
			byPort[port] = append(byPort[port], r)
		}
	}
	var out []Rule
	for port, refs := range byPort {
		for _, e := range p.podSets(key+"; "+proto+" "+name+"="+port, refs) {
			out = append(out, Rule{Family: e.family, Peers: e.setName, Proto: proto, Ports: port})
		}
	}
	return out
}

// groupPorts returns the ports of a rule by protocol. nil for a protocol means all of its ports.
func groupPorts(all []networkingv1.NetworkPolicyPort, resolve func(proto, name string) []string) map[string][]portSpan {
	out := map[string][]portSpan{}
	whole := map[string]bool{}
	for _, port := range all {
		proto := protocol(port.Protocol)
		switch {
		case proto == "":
		case port.Port == nil:
			whole[proto] = true
		case port.Port.Type == intstr.String:
			for _, number := range resolve(proto, port.Port.StrVal) {
				n, _ := strconv.Atoi(number) // it was formatted from a number
				out[proto] = append(out[proto], portSpan{uint16(n), uint16(n)})
			}
		default:
			if s, ok := numericPorts(port); ok {
				out[proto] = append(out[proto], s)
			}
		}
	}
	for proto, s := range out {
		out[proto] = unionPorts(s)
	}
	for proto := range whole {
		out[proto] = nil
	}
	return out
}

// peerSet is a set of addresses for the other end of a connection. The zero value means all addresses.
type peerSet struct {
	family  int
	setName string
}

// peersOf returns the ends of a rule. none is set when the rule has ports and none of them exists: then no peer is
// needed.
func (p *namespaceRules) peersOf(peers []networkingv1.NetworkPolicyPeer, none bool) []peerSet {
	if none {
		return nil
	}
	if len(peers) == 0 {
		return []peerSet{{}}
	}
	var out []peerSet
	var blocks []span
	for i := range peers {
		if peers[i].IPBlock != nil {
			blocks = append(blocks, p.spansOf(peers[i].IPBlock)...)
			continue
		}
		s := p.selectionOf(&peers[i])
		out = append(out, p.podSets(s.name, p.refs(s))...)
	}
	p.spendWork(len(blocks))
	return append(out, p.blockSets(union(blocks))...)
}

// combinePorts combines each end with each group of ports.
func (p *namespaceRules) combinePorts(ends []peerSet, groups map[string][]portSpan, any bool) []Rule {
	var out []Rule
	for _, e := range ends {
		if any {
			out = append(out, Rule{Family: e.family, Peers: e.setName})
		}
		for proto, spans := range groups {
			out = append(out, Rule{Family: e.family, Peers: e.setName, Proto: proto, Ports: p.portSet(spans)})
		}
	}
	return out
}

func (p *namespaceRules) refs(s selected) []ref {
	if out, ok := p.members[s.name]; ok {
		return out
	}
	if p.exceeded != "" {
		return nil
	}
	out, work := p.c.selected(s.selection, p.limits.Work-p.work)
	p.spendWork(work)
	p.members[s.name] = out
	return out
}

// podSets makes sets that are named after the selection, not after its pods: a pod that is added or deleted changes an
// element, and no rule. Rules with the same selection share the set.
func (p *namespaceRules) podSets(key string, refs []ref) []peerSet {
	var out []peerSet
	for _, f := range p.families {
		kind := addresses4
		if f == 6 {
			kind = addresses6
		}
		name := p.insert("p"+strconv.Itoa(f)+"-"+hashName(key), kind, func() map[string]bool {
			elems := map[string]bool{}
			for _, r := range refs {
				for _, ip := range r.ips {
					if familyOf(ip) == f {
						elems[ip.String()] = true
					}
				}
			}
			return elems
		})
		out = append(out, peerSet{f, name})
	}
	return out
}

func (p *namespaceRules) blockSets(spans []span) []peerSet {
	var out []peerSet
	for _, f := range p.families {
		kind := spans4
		if f == 6 {
			kind = spans6
		}
		elems := map[string]bool{}
		for _, s := range spans {
			if familyOf(s.first) == f {
				elems[s.String()] = true
			}
		}
		if len(elems) > 0 {
			words := strings.Join(slices.Sorted(maps.Keys(elems)), ",")
			out = append(out, peerSet{f, p.insert("b"+strconv.Itoa(f)+"-"+hashName(words), kind, func() map[string]bool { return elems })})
		}
	}
	return out
}

// portSet returns the ports as in a rule: "" for all of them, a number, or a set.
func (p *namespaceRules) portSet(spans []portSpan) string {
	if len(spans) == 0 {
		return ""
	}
	if len(spans) == 1 && spans[0].first == spans[0].last {
		return strconv.Itoa(int(spans[0].first))
	}
	elems := map[string]bool{}
	for _, s := range spans {
		text := strconv.Itoa(int(s.first))
		if s.last != s.first {
			text += "-" + strconv.Itoa(int(s.last))
		}
		elems[text] = true
	}
	return "@" + p.insert("q-"+hashName(strings.Join(slices.Sorted(maps.Keys(elems)), ",")), ports, func() map[string]bool { return elems })
}

// insert adds a set with that name, unless it exists.
func (p *namespaceRules) insert(name string, kind setKind, elems func() map[string]bool) string {
	if _, ok := p.ruleset.Sets[name]; !ok && p.exceeded == "" {
		s := Set{kind, elems()}
		p.ruleset.Sets[name] = s
		p.charge(&p.elements, len(s.Elems)+1, p.limits.Elements, "addresses and ports in sets")
	}
	return name
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}
