// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// TestAddressServesAllPorts: an address is served with all ports of the Service, or not at all.
func TestAddressServesAllPorts(t *testing.T) {
	failed := "InUse"
	web, ssh := corev1.PortStatus{Port: 80, Protocol: corev1.ProtocolTCP}, corev1.PortStatus{Port: 22}
	udp, bad := corev1.PortStatus{Port: 22, Protocol: corev1.ProtocolUDP}, corev1.PortStatus{Port: 22, Error: &failed}
	proxied := corev1.LoadBalancerIPModeProxy
	at := func(ports ...corev1.PortStatus) corev1.LoadBalancerIngress {
		return corev1.LoadBalancerIngress{IP: "192.0.2.1", Ports: ports}
	}
	for _, c := range []struct {
		name    string
		ingress []corev1.LoadBalancerIngress
		taken   []int
	}{
		{"no ports are listed", []corev1.LoadBalancerIngress{at()}, nil},
		{"all ports", []corev1.LoadBalancerIngress{at(web, ssh)}, nil},
		{"a port more than the spec has", []corev1.LoadBalancerIngress{at(web, ssh, udp)}, nil},
		{"one port of two, at one address of two", []corev1.LoadBalancerIngress{at(web, ssh), at(web)}, []int{1}},
		{"another protocol", []corev1.LoadBalancerIngress{at(web, udp)}, []int{0}},
		{"a port with an error", []corev1.LoadBalancerIngress{at(web, bad)}, []int{0}},
		{"not served by nodes anyhow", []corev1.LoadBalancerIngress{
			{IP: "192.0.2.1", IPMode: &proxied, Ports: []corev1.PortStatus{web}}, {Hostname: "lb", Ports: []corev1.PortStatus{web}},
		}, nil},
	} {
		svc := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}, {Port: 22}}}}
		svc.Status.LoadBalancer.Ingress = c.ingress
		var problems []string
		got := newExternals(Options{}, klog.Background()).excludedIngress(svc, &problems)
		if !slices.Equal(got, c.taken) || len(problems) > 0 {
			t.Errorf("%s: not served are the addresses %v (%v), want %v", c.name, got, problems, c.taken)
		}
	}
}
