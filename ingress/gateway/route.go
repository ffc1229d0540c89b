// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// route is an HTTPRoute, a GRPCRoute or a TLSRoute.
type route struct {
	kind    gatewayv1.Kind
	object  metav1.Object
	hosts   []string // none stands for all
	have    []gatewayv1.RouteParentStatus
	parents []*parent
	// passthrough says that backends are being resolved for connections whose TLS the proxy does not end. Policies do
	// not matter then.
	passthrough bool

	rules    []rule
	streams  streams // of a TLSRoute
	resolved problem
	// invalid is the reason for which no rule can be served. partly is the problem of some rules.
	invalid        problem
	partialProblem problem
	// services are the Services that the route names and may name.
	services map[types.NamespacedName]bool
}

// rule is a rule of an HTTPRoute or a GRPCRoute, without what depends on the listener.
type rule struct {
	matches  []match
	backends []table.Backend
	policy   table.Policy
}

// match is the matching fields of a table.Route, with the values that its precedence follows from.
type match struct {
	table.Route
	// rank orders kinds of paths. Of length, second, headers and query the higher count has precedence.
	rank, length, second, headers, query int
	steps                                int // of its expressions
}

// streams are the backends of a TLSRoute's connections, for listeners that pass TLS through and that terminate it.
type streams struct{ passed, terminated []table.Backend }

// parent is a reference to a Gateway of this controller, or to a ListenerSet of such a Gateway.
type parent struct {
	ref      gatewayv1.ParentReference
	gateway  *gateway
	attached []*attachment
	refused  problem
}

type attachment struct {
	route    *route
	listener *listener
	hosts    []string // the hosts that both have
	// conflict is set if a route of another kind has some of the hosts.
	conflict problem
}

func (r *route) id() string {
	return string(r.kind) + "/" + r.object.GetNamespace() + "/" + r.object.GetName()
}

// readRoutes reads the routes that concern this controller.
func (c *compiler) readRoutes() {
	for _, o := range byAge(c.s.HTTPRoutes) {
		if r := c.newRoute(kindHTTP, o, o.Spec.Hostnames, o.Spec.ParentRefs, o.Status.Parents); r != nil && len(r.parents) > 0 {
			c.httpRules(r, o.Spec.Rules)
		}
	}
	for _, o := range byAge(c.s.GRPCRoutes) {
		if r := c.newRoute(kindGRPC, o, o.Spec.Hostnames, o.Spec.ParentRefs, o.Status.Parents); r != nil && len(r.parents) > 0 {
			c.grpcRules(r, o.Spec.Rules)
		}
	}
	for _, o := range byAge(c.s.TLSRoutes) {
		if r := c.newRoute(kindTLS, o, o.Spec.Hostnames, o.Spec.ParentRefs, o.Status.Parents); r != nil && len(r.parents) > 0 {
			c.tlsRules(r, o.Spec.Rules)
		}
	}
}

// newRoute reads the fields that all kinds have. It returns nil for a route that does not concern this controller.
func (c *compiler) newRoute(kind gatewayv1.Kind, object metav1.Object, hosts []gatewayv1.Hostname, refs []gatewayv1.ParentReference,
	have []gatewayv1.RouteParentStatus) *route {
	if object.GetDeletionTimestamp() != nil {
		return nil
	}
	r := &route{kind: kind, object: object, have: have, services: map[types.NamespacedName]bool{}}
	for i, ref := range refs {
		if slices.ContainsFunc(refs[:i], func(before gatewayv1.ParentReference) bool { return sameParent(before, ref) }) {
			continue
		}
		if p := c.parent(r, ref); p != nil {
			r.parents = append(r.parents, p)
		}
	}
	if len(r.parents) == 0 && !slices.ContainsFunc(have, isOwn) {
		return nil
	}
	for _, h := range hosts {
		if name, ok := hostName(h); ok {
			r.hosts = append(r.hosts, name)
		}
	}
	if len(hosts) > 0 && len(r.hosts) == 0 {
		r.invalid = problem{string(gatewayv1.RouteReasonUnsupportedValue), "no hostname is a DNS name"}
	}
	c.routes = append(c.routes, r)
	return r
}

func isOwn(s gatewayv1.RouteParentStatus) bool { return s.ControllerName == ControllerName }

// parent resolves a reference. It returns nil for one that is not to an object of this controller.
func (c *compiler) parent(r *route, ref gatewayv1.ParentReference) *parent {
	if ptr.Deref(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName {
		return nil
	}
	name := types.NamespacedName{Namespace: string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(r.object.GetNamespace()))),
		Name: string(ref.Name)}
	p := &parent{ref: ref}
	var listeners []*listener
	switch ptr.Deref(ref.Kind, "Gateway") {
	case "Gateway":
		g := c.gateways[name]
		if g == nil {
			return nil
		}
		p.gateway, listeners = g, g.listeners
	case "ListenerSet":
		s := c.sets[name]
		if s == nil {
			return nil
		}
		if p.gateway, listeners = s.gateway, s.listeners; !s.accepted.ok() {
			p.refused = problem{string(gatewayv1.RouteReasonNoMatchingParent), "the ListenerSet is not part of its Gateway: " +
				s.accepted.message}
		}
	default:
		return nil
	}
	for _, l := range listeners {
		if (ref.SectionName == nil || *ref.SectionName == l.spec.Name) && (ref.Port == nil || *ref.Port == l.spec.Port) {
			p.attached = append(p.attached, &attachment{route: r, listener: l})
		}
	}
	if len(p.attached) == 0 {
		p.refused = firstProblem(p.refused, problem{string(gatewayv1.RouteReasonNoMatchingParent), "the parent has no listener with the " +
			"sectionName and the port of the reference"})
	}
	return p
}

func (c *compiler) attach() {
	for _, r := range c.routes {
		for _, p := range r.parents {
			c.choose(r, p)
		}
	}
	for _, g := range c.gateways {
		for _, l := range g.listenersInOrder() {
			l.order()
		}
	}
	for _, r := range c.routes {
		for _, p := range r.parents {
			p.attached = slices.DeleteFunc(p.attached, func(a *attachment) bool {
				p.refused = firstProblem(p.refused, a.conflict)
				return !a.conflict.ok()
			})
			if len(p.attached) > 0 {
				p.refused = problem{}
			}
		}
	}
}

// ancestors sets which Gateways have routes to the targets of policies. A policy's status has few of them: those that
// are first by name.
func (c *compiler) ancestors() {
	reached := map[types.NamespacedName]map[types.NamespacedName]bool{} // Gateways by Service
	for _, r := range c.routes {
		for _, p := range r.parents {
			if len(p.attached) == 0 {
				continue
			}
			for service := range r.services {
				if reached[service] == nil {
					reached[service] = map[types.NamespacedName]bool{}
				}
				reached[service][nameOf(p.gateway.object)] = true
			}
		}
	}
	few := map[types.NamespacedName][]types.NamespacedName{}
	for service, gateways := range reached {
		all := sortedNames(gateways)
		few[service] = all[:min(len(all), maxAncestors)]
	}
	for _, p := range c.allPolicies {
		for service := range p.targets {
			for _, g := range few[service] {
				p.ancestors[g] = true
			}
		}
	}
}

// choose keeps the attachments to listeners that allow the route and have hosts in common with it.
func (c *compiler) choose(r *route, p *parent) {
	if !p.refused.ok() {
		p.attached = nil
		return
	}
	p.attached = slices.DeleteFunc(p.attached, func(a *attachment) bool { return !a.listener.allows(c, r.kind, r.object.GetNamespace()) })
	if len(p.attached) == 0 {
		p.refused = problem{string(gatewayv1.RouteReasonNotAllowedByListeners),
			fmt.Sprintf("no listener allows the kind %s from the namespace %s", r.kind, r.object.GetNamespace())}
		return
	}
	if !r.invalid.ok() {
		p.attached, p.refused = nil, r.invalid
		return
	}
	p.attached = slices.DeleteFunc(p.attached, func(a *attachment) bool {
		a.hosts = r.hostsAt(a.listener)
		return len(a.hosts) == 0
	})
	if len(p.attached) == 0 {
		p.refused = problem{string(gatewayv1.RouteReasonNoMatchingListenerHostname), "no listener has a hostname of the route"}
		return
	}
	for _, a := range p.attached {
		a.listener.attached = append(a.listener.attached, a)
	}
}

func (r *route) hostsAt(l *listener) []string {
	if len(r.hosts) == 0 {
		return []string{l.host}
	}
	var out []string
	for _, h := range r.hosts {
		if both, ok := intersect(l.host, h); ok && !slices.Contains(out, both) {
			out = append(out, both)
		}
	}
	return out
}

// order sorts the routes of a listener by age. Where an HTTPRoute and a GRPCRoute have hosts in common, it rejects the
// younger one.
func (l *listener) order() {
	slices.SortStableFunc(l.attached, func(a, b *attachment) int { return compareAge(a.route.object, b.route.object) })
	has := map[gatewayv1.Kind]bool{}
	for _, a := range l.attached {
		has[a.route.kind] = true
	}
	if !has[kindHTTP] || !has[kindGRPC] {
		return
	}
	// taken are the hosts that routes of a kind have. covering are the names that cover some of these hosts.
	taken := map[gatewayv1.Kind]map[string]bool{kindHTTP: {}, kindGRPC: {}}
	covering := map[gatewayv1.Kind]map[string]bool{kindHTTP: {}, kindGRPC: {}}
	l.attached = slices.DeleteFunc(l.attached, func(a *attachment) bool {
		kind, other := a.route.kind, kindHTTP
		if kind == kindHTTP {
			other = kindGRPC
		}
		for _, h := range a.hosts {
			lost := covering[other][h]
			for name := range coveringNames(h) {
				lost = lost || taken[other][name]
			}
			if lost {
				a.conflict = problem{"HostnameConflict", fmt.Sprintf("an older %s has hosts of the route at the listener %s", other,
					l.spec.Name)}
				return true
			}
		}
		for _, h := range a.hosts {
			taken[kind][h] = true
			for name := range coveringNames(h) {
				covering[kind][name] = true
			}
		}
		return false
	})
}

// attachedRoutes counts the routes of a listener, each once even if it has several references.
func (l *listener) attachedRoutes() int32 {
	routes := map[*route]bool{}
	for _, a := range l.attached {
		routes[a.route] = true
	}
	return int32(len(routes)) //nolint:gosec // G115: an object store holds fewer
}

// maxParents is the greatest number that the API server accepts.
const maxParents = 32

// routeStatus adds the status of a route: for each parent, whether it is accepted.
func (c *compiler) routeStatus(r *route) {
	out := slices.DeleteFunc(slices.Clone(r.have), isOwn)
	for _, p := range r.parents {
		if len(out) == maxParents {
			break
		}
		var before []metav1.Condition
		for _, h := range r.have {
			if isOwn(h) && sameParent(h.ParentRef, p.ref) {
				before = h.Conditions
			}
		}
		want := []metav1.Condition{
			newCondition(gatewayv1.RouteConditionAccepted, gatewayv1.RouteReasonAccepted, p.refused, "the route is attached"),
			newCondition(gatewayv1.RouteConditionResolvedRefs, gatewayv1.RouteReasonResolvedRefs, r.resolved,
				"all references are resolved"),
		}
		if p.refused.ok() && !r.partialProblem.ok() {
			want = append(want, metav1.Condition{
				Type: string(gatewayv1.RouteConditionPartiallyInvalid), Status: metav1.ConditionTrue, Reason: r.partialProblem.reason,
				Message: r.partialProblem.message,
			})
		}
		out = append(out, gatewayv1.RouteParentStatus{
			ParentRef: p.ref, ControllerName: ControllerName,
			Conditions: mergeConditions(before, r.object.GetGeneration(), c.s.Now, want, string(gatewayv1.RouteConditionPartiallyInvalid)),
		})
	}
	status := gatewayv1.RouteStatus{Parents: out}
	if out == nil {
		status.Parents = []gatewayv1.RouteParentStatus{} // the API server requires the list
	}
	switch name := nameOf(r.object); r.kind {
	case kindHTTP:
		c.r.HTTPRouteStatus[name] = gatewayv1.HTTPRouteStatus{RouteStatus: status}
	case kindGRPC:
		c.r.GRPCRouteStatus[name] = gatewayv1.GRPCRouteStatus{RouteStatus: status}
	case kindTLS:
		c.r.TLSRouteStatus[name] = gatewayv1.TLSRouteStatus{RouteStatus: status}
	}
}

// sameParent reports whether two references are the same, field by field.
func sameParent(a, b gatewayv1.ParentReference) bool {
	return samePointer(a.Group, b.Group) && samePointer(a.Kind, b.Kind) && samePointer(a.Namespace, b.Namespace) && a.Name == b.Name &&
		samePointer(a.SectionName, b.SectionName) && samePointer(a.Port, b.Port)
}

func samePointer[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func sortedNames(set map[types.NamespacedName]bool) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(set), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
}
