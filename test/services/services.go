// SPDX-License-Identifier: Apache-2.0

// Package services makes Services and their endpoints for tests.
package services

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// New is a Service of the namespace default with cluster addresses, of one family or of both.
func New(name string, ips []string, ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: ips, Ports: ports},
	}
	for i, text := range ips {
		if i == 0 {
			s.Spec.ClusterIP = text
		}
		if ip, err := netip.ParseAddr(text); err == nil { // else it is None
			family := corev1.IPv6Protocol
			if ip.Is4() {
				family = corev1.IPv4Protocol
			}
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, family)
		}
	}
	return s
}

// Slice has ready endpoints of a Service, all of one family and on one node. Each of the Service's ports leads to port,
// or where that is zero to its own target.
func Slice(s *corev1.Service, node string, port int32, ips ...string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if len(ips) > 0 && netip.MustParseAddr(ips[0]).Is6() {
		out.Name, out.AddressType = s.Name+"-6", discoveryv1.AddressTypeIPv6
	}
	for _, p := range s.Spec.Ports {
		target := port
		if target == 0 {
			target = p.TargetPort.IntVal
		}
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Port: &target, Protocol: ptr.To(p.Protocol)})
	}
	for _, ip := range ips {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, NodeName: ptr.To(node), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return out
}

// At is an endpoint on a node, ready unless conditions say otherwise: r for ready, s for serving, t for terminating.
func At(ip, node, conditions string, zones ...string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: ptr.To(node), Zone: ptr.To("east")}
	for _, z := range zones {
		if e.Hints == nil {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
	}
	for _, c := range conditions {
		switch c {
		case 'r':
			e.Conditions.Ready = ptr.To(true)
		case 'n':
			e.Conditions.Ready = ptr.To(false)
		case 's':
			e.Conditions.Serving = ptr.To(true)
		case 't':
			e.Conditions.Terminating = ptr.To(true)
		}
	}
	return e
}

// ForNode is an endpoint that is meant for the clients of a node.
func ForNode(e discoveryv1.Endpoint, node string) discoveryv1.Endpoint {
	e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: node})
	return e
}
