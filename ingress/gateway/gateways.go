// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

type gateway struct {
	object    *gatewayv1.Gateway
	accepted  problem // without regard to its listeners
	refs      problem
	listeners []*listener
	sets      []*listenerSet // those that the Gateway allows, in the order of their precedence
	// certificate is the certificate that the proxy sends to backends; nil for none.
	certificate *keyPair
	// service is the Gateway's Service; nil if there is none yet.
	service   *corev1.Service
	nodePorts map[string]uint16 // of all Gateways, by site
	insecure  bool              // some listener asks for certificates, and accepts clients without a valid one
}

type listenerSet struct {
	object    *gatewayv1.ListenerSet
	gateway   *gateway
	accepted  problem // without regard to its listeners
	listeners []*listener
}

// listenersInOrder returns the listeners of the Gateway and its ListenerSets, in the order of their precedence.
func (g *gateway) listenersInOrder() []*listener {
	out := slices.Clone(g.listeners)
	for _, s := range g.sets {
		out = append(out, s.listeners...)
	}
	return out
}

func (c *compiler) gateway(object *gatewayv1.Gateway, class problem) {
	g := &gateway{object: object, nodePorts: c.s.NodePorts}
	c.gateways[nameOf(object)] = g
	name := types.NamespacedName{Namespace: object.Namespace, Name: ServiceName(object.Name)}
	if older := c.gatewayOf[name]; older != nil {
		g.accepted = problem{
			string(gatewayv1.GatewayReasonInvalid),
			fmt.Sprintf("the older Gateway %s has the Service %s: give this one another name", older.Name, name.Name),
		}
	} else {
		c.gatewayOf[name], g.service = object, c.services[name]
	}
	if !class.ok() {
		g.accepted = problem{string(gatewayv1.GatewayReasonPending), "the GatewayClass is not accepted: " + class.message}
	}
	g.accepted = firstProblem(g.accepted, flawOf(object))
	c.readBackendTLS(g)
	for _, l := range object.Spec.Listeners {
		g.listeners = append(g.listeners, c.newListener(g, referrer{"Gateway", object.Namespace}, l))
	}
	if tls := object.Spec.TLS; tls != nil && tls.Frontend != nil {
		insecure := func(t gatewayv1.TLSConfig) bool {
			return t.Validation != nil && t.Validation.Mode == gatewayv1.AllowInsecureFallback
		}
		g.insecure = insecure(tls.Frontend.Default) || slices.ContainsFunc(tls.Frontend.PerPort,
			func(p gatewayv1.TLSPortConfig) bool { return insecure(p.TLS) })
	}
}

// flawOf returns the first setting of a whole Gateway that is not supported.
func flawOf(object *gatewayv1.Gateway) problem {
	if i := object.Spec.Infrastructure; i != nil && i.ParametersRef != nil {
		return problem{string(gatewayv1.GatewayReasonInvalidParameters), "spec.infrastructure.parametersRef is set: this controller has " +
			"no parameters, remove it"}
	}
	for _, a := range object.Spec.Addresses {
		if kind := ptr.Deref(a.Type, gatewayv1.IPAddressType); kind != gatewayv1.IPAddressType {
			return problem{string(gatewayv1.GatewayReasonUnsupportedAddress), fmt.Sprintf("an address has the type %q: only %s is served",
				kind, gatewayv1.IPAddressType)}
		}
		if _, err := netip.ParseAddr(a.Value); a.Value != "" && err != nil {
			return problem{string(gatewayv1.GatewayReasonUnsupportedAddress), fmt.Sprintf("the address %q is no IP address", a.Value)}
		}
	}
	return problem{}
}

// nodePort returns the node port of a port of the Gateway. It returns 0 while there is none, or the Gateway has no
// Service.
func (g *gateway) nodePort(port int32) uint16 {
	if g.service == nil {
		return 0
	}
	return g.nodePorts[Site(g.object.Namespace, g.object.Name, port)]
}

// readBackendTLS reads the certificate by which the proxy authenticates to backends.
func (c *compiler) readBackendTLS(g *gateway) {
	tls := g.object.Spec.TLS
	if tls == nil || tls.Backend == nil || tls.Backend.ClientCertificateRef == nil {
		return
	}
	cert, p := c.certificateOf(referrer{"Gateway", g.object.Namespace}, *tls.Backend.ClientCertificateRef,
		string(gatewayv1.GatewayReasonInvalidClientCertificateRef))
	if g.refs = p; p.ok() {
		g.certificate = &cert
	}
}

func (c *compiler) listenerSet(object *gatewayv1.ListenerSet) {
	ref := object.Spec.ParentRef
	if ptr.Deref(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName || ptr.Deref(ref.Kind, "Gateway") != "Gateway" {
		return
	}
	g := c.gateways[types.NamespacedName{Namespace: string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(object.Namespace))),
		Name: string(ref.Name)}]
	if g == nil {
		return
	}
	s := &listenerSet{object: object, gateway: g}
	c.sets[nameOf(object)] = s
	from, selector := gatewayv1.NamespacesFromNone, (*metav1.LabelSelector)(nil)
	if a := g.object.Spec.AllowedListeners; a != nil && a.Namespaces != nil {
		from, selector = ptr.Deref(a.Namespaces.From, from), a.Namespaces.Selector
	}
	switch {
	case !c.selects(from, selector, g.object.Namespace, object.Namespace):
		s.accepted = problem{string(gatewayv1.ListenerSetReasonNotAllowed), "spec.allowedListeners of the Gateway does not allow " +
			"ListenerSets of this namespace"}
		return
	case !g.accepted.ok():
		s.accepted = problem{string(gatewayv1.ListenerSetReasonParentNotAccepted), "the Gateway is not accepted"}
		return
	}
	for _, entry := range object.Spec.Listeners {
		s.listeners = append(s.listeners, c.newListener(g, referrer{"ListenerSet", object.Namespace}, gatewayv1.Listener(entry)))
	}
	g.sets = append(g.sets, s)
}

func (g *gateway) acceptance() metav1.Condition {
	var bad []string
	some := false
	for _, l := range g.listeners {
		if l.accepted.ok() {
			some = true
		} else {
			bad = append(bad, fmt.Sprintf("%s (%s)", l.spec.Name, l.accepted.message))
		}
	}
	for _, s := range g.sets {
		some = some || slices.ContainsFunc(s.listeners, func(l *listener) bool { return l.accepted.ok() })
	}
	const reason = gatewayv1.GatewayReasonListenersNotValid
	switch p := g.accepted; {
	case !p.ok():
		return newCondition(gatewayv1.GatewayConditionAccepted, reason, p, "")
	case !some:
		return newCondition(gatewayv1.GatewayConditionAccepted, reason, problem{string(reason), "no listener is valid: " +
			strings.Join(bad, ", ")}, "")
	case len(bad) > 0:
		return newCondition(gatewayv1.GatewayConditionAccepted, reason, problem{},
			"the Gateway is served without listeners that are not valid: "+strings.Join(bad, ", "))
	}
	return newCondition(gatewayv1.GatewayConditionAccepted, gatewayv1.GatewayReasonAccepted, problem{}, "the Gateway is valid")
}

func (g *gateway) requested() []string {
	var out []string
	for _, a := range g.object.Spec.Addresses {
		if ip, err := netip.ParseAddr(a.Value); err == nil {
			out = append(out, ip.String())
		}
	}
	return out
}

func (g *gateway) addresses() []gatewayv1.GatewayStatusAddress {
	var out []gatewayv1.GatewayStatusAddress
	if g.service == nil || !g.accepted.ok() {
		return nil
	}
	add := func(kind gatewayv1.AddressType, value string) {
		if value != "" && len(out) < maxAddresses {
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &kind, Value: value})
		}
	}
	for _, i := range g.service.Status.LoadBalancer.Ingress {
		add(gatewayv1.IPAddressType, i.IP)
		add(gatewayv1.HostnameAddressType, i.Hostname)
	}
	return out
}

// maxAddresses is the greatest number that the API server accepts.
const maxAddresses = 16

// programmed returns the reason for which the Gateway is not served.
func (g *gateway) programmed(accepted metav1.Condition, addresses []gatewayv1.GatewayStatusAddress) problem {
	if accepted.Status != metav1.ConditionTrue {
		return problem{string(gatewayv1.GatewayReasonInvalid), "the Gateway is not accepted: " + accepted.Message}
	}
	for _, want := range g.requested() {
		if !slices.ContainsFunc(addresses, func(a gatewayv1.GatewayStatusAddress) bool { return a.Value == want }) {
			return problem{string(gatewayv1.GatewayReasonAddressNotUsable),
				fmt.Sprintf("the address %s is not assigned: the events of the Service %s say why", want, ServiceName(g.object.Name))}
		}
	}
	if len(addresses) == 0 {
		return problem{string(gatewayv1.GatewayReasonAddressNotAssigned), fmt.Sprintf("the Service %s has no address yet",
			ServiceName(g.object.Name))}
	}
	p := problem{string(gatewayv1.GatewayReasonInvalid), "no listener can be served"}
	for _, l := range g.listenersInOrder() {
		why := l.programmed()
		if why.ok() {
			return problem{}
		}
		if why.reason == string(gatewayv1.ListenerReasonPending) {
			p = why
		}
	}
	return p
}

// finishGateway adds the sections, the Service and the status of a Gateway.
func (c *compiler) finishGateway(g *gateway) error {
	accepted := g.acceptance()
	addresses := g.addresses()
	want := []metav1.Condition{
		accepted,
		newCondition(gatewayv1.GatewayConditionProgrammed, gatewayv1.GatewayReasonProgrammed, g.programmed(accepted, addresses),
			"nodes serve the Gateway"),
		newCondition(gatewayv1.GatewayConditionResolvedRefs, gatewayv1.GatewayReasonResolvedRefs, g.refs, "all references are resolved"),
	}
	if g.insecure {
		want = append(want, metav1.Condition{
			Type: string(gatewayv1.GatewayConditionInsecureFrontendValidationMode), Status: metav1.ConditionTrue,
			Reason:  string(gatewayv1.GatewayReasonConfigurationChanged),
			Message: "AllowInsecureFallback lets clients in whose certificate is missing or not valid",
		})
	}
	status := *g.object.Status.DeepCopy()
	status.Conditions = mergeConditions(status.Conditions, g.object.Generation, c.s.Now, want,
		string(gatewayv1.GatewayConditionInsecureFrontendValidationMode))
	status.Addresses = addresses
	have := map[gatewayv1.SectionName][]metav1.Condition{}
	for _, l := range status.Listeners {
		have[l.Name] = l.Conditions
	}
	status.Listeners = nil
	for _, l := range g.listeners {
		status.Listeners = append(status.Listeners, l.status(c, have[l.spec.Name], g.object.Generation))
	}
	var attached int32
	for _, s := range g.sets {
		if s.valid() {
			attached++
		}
	}
	status.AttachedListenerSets = &attached
	c.r.GatewayStatus[nameOf(g.object)] = status
	if accepted.Status != metav1.ConditionTrue {
		return nil
	}
	c.wantService(g)
	return c.sites(g)
}

// wantService adds the desired Service of a Gateway.
func (c *compiler) wantService(g *gateway) {
	ports := map[int32]bool{}
	for _, l := range g.listenersInOrder() {
		if l.accepted.ok() {
			ports[l.spec.Port] = true
		}
	}
	out := Service{Gateway: g.object, Ports: slices.Sorted(maps.Keys(ports)), Addresses: g.requested(), Labels: map[string]string{},
		Annotations: map[string]string{}}
	if i := g.object.Spec.Infrastructure; i != nil {
		for k, v := range i.Labels {
			out.Labels[string(k)] = string(v)
		}
		for k, v := range i.Annotations {
			out.Annotations[string(k)] = string(v)
		}
	}
	delete(out.Labels, ServiceLabel)
	out.Labels[gatewayv1.GatewayNameLabelKey] = LabelValue(g.object.Name)
	c.r.Services[types.NamespacedName{Namespace: g.object.Namespace, Name: ServiceName(g.object.Name)}] = out
}

// valid reports whether a listener of the set can be served.
func (s *listenerSet) valid() bool { return slices.ContainsFunc(s.listeners, (*listener).servable) }

func (c *compiler) finishSet(s *listenerSet) {
	accepted := s.accepted
	if accepted.ok() && !s.valid() {
		accepted = problem{string(gatewayv1.ListenerSetReasonListenersNotValid), "no listener can be served: the status of each says why"}
	}
	programmed := accepted
	if programmed.ok() {
		pending := problem{string(gatewayv1.ListenerSetReasonPending), "the Gateway's Service has no ports of nodes for the listeners yet"}
		if !slices.ContainsFunc(s.listeners, func(l *listener) bool { return l.programmed().ok() }) {
			programmed = pending
		}
	}
	status := *s.object.Status.DeepCopy()
	status.Conditions = mergeConditions(status.Conditions, s.object.Generation, c.s.Now, []metav1.Condition{
		newCondition(gatewayv1.ListenerSetConditionAccepted, gatewayv1.ListenerSetReasonAccepted, accepted,
			"the ListenerSet is part of the Gateway"),
		newCondition(gatewayv1.ListenerSetConditionProgrammed, gatewayv1.ListenerSetReasonProgrammed, programmed,
			"nodes serve the ListenerSet"),
	})
	have := map[gatewayv1.SectionName][]metav1.Condition{}
	for _, l := range status.Listeners {
		have[l.Name] = l.Conditions
	}
	status.Listeners = nil
	for _, l := range s.listeners {
		status.Listeners = append(status.Listeners, gatewayv1.ListenerEntryStatus(l.status(c, have[l.spec.Name], s.object.Generation)))
	}
	c.r.ListenerSetStatus[nameOf(s.object)] = status
}
