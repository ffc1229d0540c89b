// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/certificate"
	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// maxTable limits the estimated memory of routes in a proxy, in bytes. A namespace may have half of it.
	maxTable = 48 << 20
	// matchCost is the memory of a match, textCost that of a byte of its texts, and stepCost that of a step of an
	// expression.
	matchCost, textCost, stepCost = 2 << 10, 8, 160
	// maxSteps limits the steps of expressions of one namespace.
	maxSteps = maxTable / 2 / stepCost
	// maxSecrets limits the memory of certificates and authorities in the same way. secretCost is the memory of a byte
	// of their text.
	maxSecrets, secretCost = 32 << 20, 4
	// maxListeners limits the memory of listeners' hosts without their routes, of matchCost each, in the same way.
	maxListeners = 16 << 20
)

// budget counts the memory that namespaces have taken of a limit.
type budget struct {
	limit, total int
	byNamespace  map[string]int
}

// reserve takes memory for a namespace. It returns false when the memory does not suffice. A namespace may have half.
func (r *budget) reserve(namespace string, cost int) bool {
	if r.byNamespace[namespace]+cost > r.limit/2 || r.total+cost > r.limit {
		return false
	}
	if r.byNamespace == nil {
		r.byNamespace = map[string]int{}
	}
	r.byNamespace[namespace] += cost
	r.total += cost
	return true
}

// bound leaves out routes that take more of the proxies' memory than there is: those of namespaces that take too much,
// the youngest first. A route takes memory at each of its hosts, and a Gateway may have many. A route that adds a host
// also pays for the older routes at that host, so that no route is left out because of a younger one.
func (c *compiler) bound() {
	sites := map[*gateway]map[int32]*siteFilling{}
	for _, g := range c.gateways {
		sites[g] = map[int32]*siteFilling{}
		for port, s := range g.ports() {
			sites[g][port] = newFilling(s)
		}
	}
	room, shared, refused := budget{limit: maxTable}, sharedSteps{}, map[*route]bool{}
	for _, r := range slices.SortedStableFunc(slices.Values(c.routes), func(a, b *route) int { return compareAge(a.object, b.object) }) {
		cost, total, hosts := 0, 0, 0
		for _, a := range r.attachments() {
			if f := sites[a.listener.gateway][a.listener.spec.Port]; f != nil {
				if cost == 0 {
					cost = r.memoryCost()
				}
				n, others := f.add(a, cost)
				hosts += n
				total += n*cost + others
			}
		}
		why := problem{"TooLarge", fmt.Sprintf("the routes of the namespace take more memory in the proxies than one namespace may "+
			"have, or those of the cluster "+
			"more than there is; this one is at %d hosts: fewer hosts, matches and filters make room", hosts)}
		if !shared.reserve(r) {
			why = tooCostly(r.object)
		} else if room.reserve(r.object.GetNamespace(), total) {
			continue
		}
		refused[r] = true
		for _, a := range r.attachments() {
			if f := sites[a.listener.gateway][a.listener.spec.Port]; f != nil {
				f.undo(a)
			}
		}
		r.leaveOut(why)
	}
	c.addCharges(room)
	if len(refused) == 0 {
		return
	}
	for _, g := range c.gateways {
		for _, l := range g.listenersInOrder() {
			l.attached = slices.DeleteFunc(l.attached, func(a *attachment) bool { return refused[a.route] })
			l.index = nil
		}
	}
}

// boundSecrets leaves out certificates and authorities that take more of the proxies' memory than there is, as bound
// does with routes: in a namespace that takes too much, those of the youngest objects.
func (c *compiler) boundSecrets() {
	type user struct {
		object metav1.Object
		read   func(reserve func(key string, size int) bool)
	}
	var users []user
	listeners := func(all []*listener) func(reserve func(string, int) bool) {
		return func(reserve func(string, int) bool) {
			for _, l := range all {
				l.boundSecrets(reserve)
			}
		}
	}
	for _, g := range c.gateways {
		users = append(users, user{g.object, func(reserve func(string, int) bool) {
			if g.certificate != nil && !reserve(g.certificate.key, g.certificate.size()) {
				g.certificate, g.refs = nil, tooManySecrets(gatewayv1.GatewayReasonInvalidClientCertificateRef)
			}
			listeners(g.listeners)(reserve)
		}})
	}
	for _, s := range c.sets {
		users = append(users, user{s.object, listeners(s.listeners)})
	}
	for _, p := range c.allPolicies {
		users = append(users, user{p.object, func(reserve func(string, int) bool) {
			if p.found.key != "" && !reserve(p.found.key, p.found.size()) {
				p.flaw = firstProblem(p.flaw, tooManySecrets(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate))
				p.found, p.tls.Authorities = authorities{}, ""
			}
		}})
	}
	slices.SortStableFunc(users, func(a, b user) int { return compareAge(a.object, b.object) })
	room, taken := budget{limit: maxSecrets}, map[string]bool{}
	for _, u := range users {
		u.read(func(key string, size int) bool {
			if !taken[key] {
				taken[key] = room.reserve(u.object.GetNamespace(), matchCost+secretCost*size)
			}
			return taken[key]
		})
	}
	c.addCharges(room)
}

// addCharges adds what namespaces have taken of a limit to the result's charges.
func (c *compiler) addCharges(of budget) {
	for namespace, n := range of.byNamespace {
		c.usedMemory[namespace] += n
	}
}

// youngestRoute returns the youngest route of a namespace, or one of its Gateways where it has no route.
func (c *compiler) youngestRoute(namespace string) table.Object {
	var found metav1.Object
	kind := gatewayv1.Kind("Gateway")
	for _, r := range c.routes {
		if r.object.GetNamespace() == namespace && (found == nil || compareAge(found, r.object) < 0) {
			found, kind = r.object, r.kind
		}
	}
	for name, g := range c.gateways {
		if kind == "Gateway" && name.Namespace == namespace && (found == nil || compareAge(found, g.object) < 0) {
			found = g.object
		}
	}
	if found == nil {
		return table.Object{}
	}
	return table.Object{APIVersion: gatewayv1.GroupVersion.String(), Kind: string(kind), Name: found.GetName(), UID: string(found.GetUID())}
}

// boundListeners leaves out listeners whose hosts take more of the proxies' memory than there is, as bound does with
// routes: in a namespace that takes too much, those of the youngest objects.
func (c *compiler) boundListeners() {
	type owner struct {
		object    metav1.Object
		listeners []*listener
	}
	var owners []owner
	for _, g := range c.gateways {
		owners = append(owners, owner{g.object, g.listeners})
	}
	for _, s := range c.sets {
		owners = append(owners, owner{s.object, s.listeners})
	}
	slices.SortStableFunc(owners, func(a, b owner) int { return compareAge(a.object, b.object) })
	room := budget{limit: maxListeners}
	for _, o := range owners {
		for _, l := range o.listeners {
			if l.accepted.ok() && !room.reserve(l.owner.namespace, matchCost*(1+l.names())) {
				l.accepted = problem{"TooLarge", "the listeners of the namespace have more hosts than one namespace may have, or those of " +
					"the cluster more than there is room for: fewer listeners and names in certificates make room"}
			}
		}
	}
	c.addCharges(room)
}

func tooManySecrets[T ~string](reason T) problem {
	return problem{string(reason), "the certificates and authorities that the namespace's objects name take more memory in the proxies " +
		"than one namespace may have, or those of the cluster more than there is: fewer or shorter ones make room"}
}

// boundSecrets leaves out the listener's certificates and authorities for which reserve returns false.
func (l *listener) boundSecrets(reserve func(key string, size int) bool) {
	l.certificates = slices.DeleteFunc(l.certificates, func(cert keyPair) bool {
		if reserve(cert.key, cert.size()) {
			return false
		}
		l.refs = firstProblem(l.refs, tooManySecrets(gatewayv1.ListenerReasonInvalidCertificateRef))
		return true
	})
	if l.clients != nil && l.clients.key != "" && !reserve(l.clients.key, l.clients.size()) {
		l.accepted = firstProblem(l.accepted, tooManySecrets(gatewayv1.ListenerReasonNoValidCACertificate))
		l.refs = firstProblem(l.refs, tooManySecrets(gatewayv1.ListenerReasonInvalidCACertificateRef))
	}
}

func (r *route) attachments() (out []*attachment) {
	for _, p := range r.parents {
		out = append(out, p.attached...)
	}
	return out
}

// leaveOut removes a route from all its listeners, with a reason for its status.
func (r *route) leaveOut(why problem) {
	for _, p := range r.parents {
		if len(p.attached) > 0 {
			p.attached, p.refused = nil, why
		}
	}
}

// siteFilling counts the hosts of a site, and the cost of its routes, while routes are added one after the other.
type siteFilling struct {
	site  *site
	hosts map[string]bool
	// coveredHosts counts, for a name at a listener, the hosts that it covers. costs is the cost of the routes with
	// that name.
	coveredHosts, costs map[hostAtListener]int
	added               map[*attachment]*attachmentHosts
	counted             map[hostAtListener]map[*route]bool // the routes that are counted in costs
}

// hostAtListener is a host name at a listener.
type hostAtListener struct {
	listener *listener
	name     string
}

// attachmentHosts has the hosts and the costs that one attachment added to a site.
type attachmentHosts struct {
	hosts []string
	costs []hostAtListener
	cost  int
}

// newFilling returns a filling with the hosts that a site has without routes.
func newFilling(s *site) *siteFilling {
	f := &siteFilling{
		site: s, hosts: map[string]bool{}, coveredHosts: map[hostAtListener]int{}, costs: map[hostAtListener]int{},
		added: map[*attachment]*attachmentHosts{}, counted: map[hostAtListener]map[*route]bool{},
	}
	for host := range s.hosts {
		if s.listenerHosts[host] {
			f.addHost(host, 1)
		}
	}
	return f
}

// addHost adds a host, or removes it if by is -1. It returns the cost of the present routes at that host.
func (f *siteFilling) addHost(host string, by int) (costs int) {
	f.hosts[host] = by > 0
	l := f.site.listenerOf(host)
	for name := range coveringNames(host) {
		f.coveredHosts[hostAtListener{l, name}] += by
		costs += f.costs[hostAtListener{l, name}]
	}
	return costs
}

// add adds the hosts of an attachment. n is the number of hosts that its route gets. others is the cost of the older
// routes at new hosts.
func (f *siteFilling) add(a *attachment, cost int) (n, others int) {
	if f.added[a] != nil || f.site.listeners[a.listener.host] != a.listener {
		return 0, 0
	}
	one := &attachmentHosts{cost: cost}
	f.added[a] = one
	for _, host := range a.hosts {
		if !f.hosts[host] {
			one.hosts = append(one.hosts, host)
			others += f.addHost(host, 1)
		}
	}
	for _, host := range a.hosts {
		place := hostAtListener{a.listener, host}
		if f.counted[place][a.route] ||
			slices.ContainsFunc(a.hosts, func(other string) bool { return other != host && covers(other, host) }) {
			continue
		}
		if f.counted[place] == nil {
			f.counted[place] = map[*route]bool{}
		}
		f.counted[place][a.route] = true
		f.costs[place] += cost
		one.costs = append(one.costs, place)
		n += f.coveredHosts[place]
	}
	return n, others
}

func (f *siteFilling) undo(a *attachment) {
	one := f.added[a]
	if one == nil {
		return
	}
	delete(f.added, a)
	for _, place := range one.costs {
		f.costs[place] -= one.cost
		delete(f.counted[place], a.route)
	}
	for _, host := range one.hosts {
		f.addHost(host, -1)
	}
}

// memoryCost returns the memory of a route at one host, in bytes.
func (r *route) memoryCost() int {
	out := matchCost + textCost*(textSize(r.streams.passed)+textSize(r.streams.terminated))
	for _, rule := range r.rules {
		each := matchCost + textCost*(textSize(rule.policy)+textSize(rule.backends))
		for _, m := range rule.matches {
			out += each + textCost*(len(m.Path)+textSize(m.Headers)+textSize(m.Query)) + stepCost*m.steps
		}
	}
	return out
}

// textSize returns the approximate bytes of text in a piece of a table.
func textSize[T any](v T) int {
	if reflect.ValueOf(v).IsZero() {
		return 0
	}
	text, err := json.Marshal(v)
	if err != nil {
		return 0 // a piece of a table, which JSON can hold
	}
	return len(text)
}

// Memory is a cache of results that the next Desired need not compute again: checks of Secrets and authorities, and
// compiled expressions. A result is valid while its object is the same. Objects must not change, as those of informers
// do not. Two calls must not use it at the same time.
type Memory struct{ current, previous cachedResults }

// cachedResults holds the results of checks and compilations, by object.
type cachedResults struct {
	judged  map[*corev1.Secret]judgement
	holds   map[metav1.Object]bool
	matches map[metav1.Object]ruleMatches
}

// judgement is the result of checking a Secret as a certificate.
type judgement struct {
	names map[string]bool // of hosts
	flaw  string          // why it cannot be used; empty for a valid certificate
}

// ruleMatches holds the matches of a route, by rule.
type ruleMatches struct {
	rules    [][]match
	flaws    []problem // by rule
	tooLarge bool      // the expressions are too large; rules is nil
}

func noCache() cachedResults {
	return cachedResults{map[*corev1.Secret]judgement{}, map[metav1.Object]bool{}, map[metav1.Object]ruleMatches{}}
}

// evictUnused evicts the results that the last call has not used.
func (m *Memory) evictUnused() { m.previous, m.current = m.current, noCache() }

// cachedResult returns the cached result of an object. If there is none, it calls find.
func cachedResult[K comparable, V any](now, last map[K]V, of K, find func() V) V {
	v, ok := now[of]
	if !ok {
		if v, ok = last[of]; !ok {
			v = find()
		}
		now[of] = v
	}
	return v
}

func (m *Memory) judge(s *corev1.Secret) judgement {
	return cachedResult(m.current.judged, m.previous.judged, s, func() judgement {
		leaf, flaw := certificate.Parse(s)
		if flaw != "" {
			return judgement{flaw: flaw}
		}
		return judgement{names: namesOf(leaf)}
	})
}

// holds reports whether the text of an object consists of certificates.
func (m *Memory) holds(of metav1.Object, text string) bool {
	return cachedResult(m.current.holds, m.previous.holds, of, func() bool { return holdsCertificates(text) })
}

// matchesOf returns the matches of the rules of a route. It ends when their expressions exceed maxSteps.
func (m *Memory) matchesOf(of metav1.Object, rules int, read func(rule int, steps *int) ([]match, problem)) ruleMatches {
	return cachedResult(m.current.matches, m.previous.matches, of, func() (out ruleMatches) {
		steps := 0
		for i := range rules {
			found, flaw := read(i, &steps)
			if steps > maxSteps {
				return ruleMatches{tooLarge: true}
			}
			out.rules, out.flaws = append(out.rules, found), append(out.flaws, flaw)
		}
		return out
	})
}
