// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// occupiedHosts are the hosts that listeners have taken at a port.
type occupiedHosts struct {
	tls   bool
	hosts map[string]*listener
}

// resolveConflicts finds listeners that want the same port and host. The Gateway's own have precedence over those of
// ListenerSets, and earlier ListenerSets over later ones. If two listeners of one object conflict, neither is served.
func (g *gateway) resolveConflicts() {
	ports := map[int32]*occupiedHosts{}
	g.resolve(ports, g.listeners)
	for _, s := range g.sets {
		g.resolve(ports, s.listeners)
	}
	for _, p := range ports {
		if p.tls {
			p.findOverlaps()
		}
	}
}

// resolve adds the listeners of one object to those of earlier objects.
func (g *gateway) resolve(ports map[int32]*occupiedHosts, listeners []*listener) {
	var free []*listener
	for _, l := range listeners {
		if !l.supportsProtocol() || l.accepted.reason == string(gatewayv1.ListenerReasonUnsupportedValue) {
			continue
		}
		if at := ports[l.spec.Port]; at != nil {
			if at.tls != l.tls() {
				l.conflicts(gatewayv1.ListenerReasonProtocolConflict, "a listener before it has the port for another protocol")
				continue
			}
			if other := at.hosts[l.host]; other != nil {
				l.conflictsWith(other, "a listener before it has the port and the hostname")
				continue
			}
		}
		free = append(free, l)
	}
	for _, l := range free {
		for _, other := range free {
			switch {
			case l == other || l.spec.Port != other.spec.Port:
			case l.tls() != other.tls():
				l.conflicts(gatewayv1.ListenerReasonProtocolConflict, fmt.Sprintf("the listener %s wants the port for another protocol",
					other.spec.Name))
			case l.host == other.host:
				l.conflictsWith(other, fmt.Sprintf("the listener %s wants the same port and hostname", other.spec.Name))
			}
		}
	}
	for _, l := range free {
		if l.conflict.ok() {
			at := ports[l.spec.Port]
			if at == nil {
				at = &occupiedHosts{tls: l.tls(), hosts: map[string]*listener{}}
				ports[l.spec.Port] = at
			}
			at.hosts[l.host] = l
		}
	}
	for _, l := range listeners {
		switch {
		case l.supportsProtocol():
		case ports[l.spec.Port] != nil && l.spec.Protocol != gatewayv1.UDPProtocolType:
			l.conflicts(gatewayv1.ListenerReasonProtocolConflict, "another listener has the port for another protocol")
		default:
			l.accepted = problem{string(gatewayv1.ListenerReasonUnsupportedProtocol),
				fmt.Sprintf("the protocol %s is not served: HTTP, HTTPS and TLS are", l.spec.Protocol)}
		}
	}
}

func (l *listener) conflicts(reason gatewayv1.ListenerConditionReason, message string) {
	l.conflict = problem{string(reason), message}
	l.accepted = l.conflict
}

func (l *listener) conflictsWith(other *listener, message string) {
	if l.spec.Protocol == other.spec.Protocol && l.passthrough() == other.passthrough() {
		l.conflicts(gatewayv1.ListenerReasonHostnameConflict, message)
		return
	}
	l.conflicts(gatewayv1.ListenerReasonProtocolConflict, message)
}

// findOverlaps marks listeners with TLS that have hosts in common.
func (o *occupiedHosts) findOverlaps() {
	for host, l := range o.hosts {
		for pattern := range coveringNames(host) {
			if other := o.hosts[pattern]; other != nil && other != l {
				l.overlaps, other.overlaps = true, true
			}
		}
	}
}
