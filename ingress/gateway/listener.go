// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Kinds of routes.
const (
	kindHTTP gatewayv1.Kind = "HTTPRoute"
	kindGRPC gatewayv1.Kind = "GRPCRoute"
	kindTLS  gatewayv1.Kind = "TLSRoute"
)

type listener struct {
	gateway *gateway
	owner   referrer // the object that the listener belongs to
	spec    gatewayv1.Listener
	host    string // its host name, in the form of the table

	accepted problem
	conflict problem
	refs     problem
	kinds    []gatewayv1.Kind
	// certificates are the valid certificates, in the order of the references.
	certificates []keyPair
	// clients are the settings for clients' certificates; nil asks for none.
	clients *clients
	// attached are the attachments of routes, by the age of the routes.
	attached []*attachment
	overlaps bool                // another listener with TLS of the port has some of its hosts
	index    map[string][]*route // cache of byHost
}

// clients describes how the certificates of clients are verified.
type clients struct {
	authorities
	optional bool
}

func (l *listener) tls() bool {
	return l.spec.Protocol == gatewayv1.HTTPSProtocolType || l.spec.Protocol == gatewayv1.TLSProtocolType
}

func (l *listener) passthrough() bool {
	return l.spec.Protocol == gatewayv1.TLSProtocolType && l.spec.TLS != nil &&
		ptr.Deref(l.spec.TLS.Mode, "") == gatewayv1.TLSModePassthrough
}

func (l *listener) supportsProtocol() bool {
	switch l.spec.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType:
		return true
	}
	return false
}

// servable reports whether the listener is valid, and has what it needs to serve.
func (l *listener) servable() bool {
	return l.accepted.ok() && len(l.kinds) > 0 && (!l.tls() || l.passthrough() || len(l.certificates) > 0)
}

// newListener reads a listener of a Gateway or a ListenerSet, without regard to other listeners.
func (c *compiler) newListener(g *gateway, owner referrer, spec gatewayv1.Listener) *listener {
	l := &listener{gateway: g, owner: owner, spec: spec}
	var ok bool
	if h := ptr.Deref(spec.Hostname, ""); h != "" {
		if l.host, ok = hostName(h); !ok {
			l.accepted = problem{string(gatewayv1.ListenerReasonUnsupportedValue), fmt.Sprintf("the hostname %q is no DNS name", h)}
		}
	}
	if spec.Port < 1 || spec.Port > 65535 {
		l.accepted = firstProblem(l.accepted, problem{string(gatewayv1.ListenerReasonPortUnavailable),
			fmt.Sprintf("there is no port %d", spec.Port)})
	}
	if !l.supportsProtocol() { // resolveConflicts may report a more exact reason
		return l
	}
	l.readKinds()
	if l.tls() && !l.passthrough() {
		c.readCertificates(l)
	}
	if spec.Protocol == gatewayv1.HTTPSProtocolType {
		c.readClients(l)
	}
	return l
}

// readKinds reads which kinds of routes may attach.
func (l *listener) readKinds() {
	compatible := []gatewayv1.Kind{kindHTTP, kindGRPC}
	if l.spec.Protocol == gatewayv1.TLSProtocolType {
		compatible = []gatewayv1.Kind{kindTLS}
	}
	if l.spec.AllowedRoutes == nil || len(l.spec.AllowedRoutes.Kinds) == 0 {
		l.kinds = compatible
		return
	}
	for _, k := range l.spec.AllowedRoutes.Kinds {
		switch {
		case ptr.Deref(k.Group, gatewayv1.GroupName) != gatewayv1.GroupName || !slices.Contains(compatible, k.Kind):
			l.refs = firstProblem(l.refs, problem{
				string(gatewayv1.ListenerReasonInvalidRouteKinds),
				fmt.Sprintf("routes of the kind %s of the group %q cannot attach to a listener of the protocol %s: %v can",
					k.Kind, ptr.Deref(k.Group, gatewayv1.GroupName), l.spec.Protocol, compatible),
			})
		case !slices.Contains(l.kinds, k.Kind):
			l.kinds = append(l.kinds, k.Kind)
		}
	}
}

func (c *compiler) readCertificates(l *listener) {
	invalid := string(gatewayv1.ListenerReasonInvalidCertificateRef)
	if l.spec.TLS == nil || len(l.spec.TLS.CertificateRefs) == 0 {
		l.refs = firstProblem(l.refs, problem{invalid, "tls.certificateRefs is empty: name a Secret with a certificate and its key"})
		return
	}
	for _, ref := range l.spec.TLS.CertificateRefs {
		cert, p := c.certificateOf(l.owner, ref, invalid)
		l.refs = firstProblem(l.refs, p)
		if p.ok() && !slices.ContainsFunc(l.certificates, func(have keyPair) bool { return have.key == cert.key }) {
			l.certificates = append(l.certificates, cert)
		}
	}
}

// readClients reads how the Gateway's clients' certificates are verified at the listener's port.
func (c *compiler) readClients(l *listener) {
	spec := l.gateway.object.Spec.TLS
	if spec == nil || spec.Frontend == nil {
		return
	}
	validation := spec.Frontend.Default.Validation
	for _, p := range spec.Frontend.PerPort {
		if p.Port == l.spec.Port {
			validation = p.TLS.Validation
		}
	}
	if validation == nil {
		return
	}
	if mode := validation.Mode; mode != "" && mode != gatewayv1.AllowValidOnly && mode != gatewayv1.AllowInsecureFallback {
		l.accepted = firstProblem(l.accepted, problem{string(gatewayv1.ListenerReasonUnsupportedValue),
			fmt.Sprintf("the mode %q of the validation of clients is not known", mode)})
	}
	found, p := c.authoritiesOf(referrer{"Gateway", l.gateway.object.Namespace}, validation.CACertificateRefs, reasons{
		invalid: string(gatewayv1.ListenerReasonInvalidCACertificateRef), kind: string(gatewayv1.ListenerReasonInvalidCACertificateKind),
	})
	if found.key == "" {
		if p.ok() {
			p = problem{string(gatewayv1.ListenerReasonInvalidCACertificateRef), "caCertificateRefs is empty: name a ConfigMap with ca.crt"}
		}
		l.accepted = firstProblem(l.accepted, problem{string(gatewayv1.ListenerReasonNoValidCACertificate),
			"no authority for certificates of clients can be used: " + p.message})
	}
	l.refs = firstProblem(l.refs, p)
	l.clients = &clients{found, validation.Mode == gatewayv1.AllowInsecureFallback}
}

// allows reports whether routes of the kind and the namespace may attach.
func (l *listener) allows(c *compiler, kind gatewayv1.Kind, namespace string) bool {
	if !slices.Contains(l.kinds, kind) {
		return false
	}
	var from *gatewayv1.FromNamespaces
	var selector *metav1.LabelSelector
	if a := l.spec.AllowedRoutes; a != nil && a.Namespaces != nil {
		from, selector = a.Namespaces.From, a.Namespaces.Selector
	}
	return c.selects(ptr.Deref(from, gatewayv1.NamespacesFromSame), selector, l.owner.namespace, namespace)
}

// selects reports whether from and selector, in an object of the namespace own, select a namespace.
func (c *compiler) selects(from gatewayv1.FromNamespaces, selector *metav1.LabelSelector, own, namespace string) bool {
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return own == namespace
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector) // nil selects nothing
		set, exists := c.namespaces[namespace]
		return err == nil && exists && s.Matches(labels.Set(set))
	}
	return false
}

func (l *listener) conditions() []metav1.Condition {
	conflicted := metav1.Condition{
		Type: string(gatewayv1.ListenerConditionConflicted), Status: metav1.ConditionFalse,
		Reason:  string(gatewayv1.ListenerReasonNoConflicts),
		Message: "no other listener wants the same port and hosts",
	}
	if !l.conflict.ok() {
		conflicted.Status, conflicted.Reason, conflicted.Message = metav1.ConditionTrue, l.conflict.reason, l.conflict.message
	}
	out := []metav1.Condition{
		newCondition(gatewayv1.ListenerConditionAccepted, gatewayv1.ListenerReasonAccepted, l.accepted, "the listener is valid"),
		newCondition(gatewayv1.ListenerConditionProgrammed, gatewayv1.ListenerReasonProgrammed, l.programmed(), "nodes serve the listener"),
		newCondition(gatewayv1.ListenerConditionResolvedRefs, gatewayv1.ListenerReasonResolvedRefs, l.refs, "all references are resolved"),
		conflicted,
	}
	if l.overlaps {
		out = append(out, metav1.Condition{
			Type: string(gatewayv1.ListenerConditionOverlappingTLSConfig), Status: metav1.ConditionTrue,
			Reason: string(gatewayv1.ListenerReasonOverlappingHostnames),
			Message: "another listener with TLS of the same port has some of the hosts: a request for a host of another listener than " +
				"that of its connection is answered with 421",
		})
	}
	return out
}

// programmed returns the reason for which nodes do not serve the listener.
func (l *listener) programmed() problem {
	switch {
	case !l.conflict.ok():
		return l.conflict
	case !l.accepted.ok():
		return problem{string(gatewayv1.ListenerReasonInvalid), l.accepted.message}
	case !l.servable():
		return problem{string(gatewayv1.ListenerReasonInvalid), l.refs.message}
	case !l.gateway.accepted.ok():
		return problem{string(gatewayv1.ListenerReasonInvalid), "the Gateway is not accepted: " + l.gateway.accepted.message}
	case l.gateway.nodePort(l.spec.Port) == 0:
		return problem{string(gatewayv1.ListenerReasonPending), "the Gateway's Service has no port of nodes for it yet"}
	}
	return problem{}
}

func (l *listener) supportedKinds() []gatewayv1.RouteGroupKind {
	out := make([]gatewayv1.RouteGroupKind, 0, len(l.kinds))
	for _, k := range l.kinds {
		group := gatewayv1.Group(gatewayv1.GroupName)
		out = append(out, gatewayv1.RouteGroupKind{Group: &group, Kind: k})
	}
	return out
}

func (l *listener) status(c *compiler, have []metav1.Condition, generation int64) gatewayv1.ListenerStatus {
	return gatewayv1.ListenerStatus{
		Name: l.spec.Name, SupportedKinds: l.supportedKinds(), AttachedRoutes: l.attachedRoutes(),
		Conditions: mergeConditions(have, generation, c.s.Now, l.conditions(), string(gatewayv1.ListenerConditionOverlappingTLSConfig)),
	}
}
