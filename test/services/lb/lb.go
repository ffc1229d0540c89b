// SPDX-License-Identifier: Apache-2.0

// Package lb makes Services of type LoadBalancer, with what they depend on, for tests.
package lb

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// Epoch is when the first Service of a test was made.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Service is a Service of type LoadBalancer that was made so many seconds after the first one.
func Service(name string, age int, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(Epoch.Add(time.Duration(age) * time.Second))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 443}},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// OnPorts gives a Service these ports, each as NUMBER/PROTOCOL.
func OnPorts(texts ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = nil
		for _, t := range texts {
			p := corev1.ServicePort{Name: t}
			if _, err := fmt.Sscanf(strings.ReplaceAll(t, "/", " "), "%d %s", &p.Port, &p.Protocol); err != nil {
				panic(fmt.Sprintf("%q is no port of a test: %v", t, err))
			}
			s.Spec.Ports = append(s.Spec.Ports, p)
		}
	}
}

// Families gives a Service these address families.
func Families(f ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.IPFamilies = f }
}

// Class gives a Service a class of load balancers.
func Class(name string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &name }
}

// LocalOnly has a Service served by nodes with endpoints only.
func LocalOnly(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// LoadBalancerIP has a Service ask for an address.
func LoadBalancerIP(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerIP = ip }
}

// Node is a ready node; an address that begins with "ext:" is an external one.
func Node(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, a := range addresses {
		kind := corev1.NodeInternalIP
		if rest, ext := strings.CutPrefix(a, "ext:"); ext {
			a, kind = rest, corev1.NodeExternalIP
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a})
	}
	return Ready(n, true)
}

// Ready has a node say whether it is ready.
func Ready(n *corev1.Node, is bool) *corev1.Node {
	status := corev1.ConditionTrue
	if !is {
		status = corev1.ConditionUnknown
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	return n
}

// With gives a node a label.
func With(n *corev1.Node, label, value string) *corev1.Node {
	n.Labels[label] = value
	return n
}

// HostPortPod is a pod on a node, with a host port.
func HostPortPod(name, on, app string, port int32) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{NodeName: on, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: port, HostPort: port, Protocol: corev1.ProtocolTCP}}}}},
	}
}

// Slice is a Service's endpoints, each as NODE, NODE:ending or NODE:unready.
func Slice(service string, endpoints ...string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	yes, no := true, false
	for _, e := range endpoints {
		node, how, _ := strings.Cut(e, ":")
		c := discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}
		switch how {
		case "ending":
			c = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		case "unready":
			c = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
		}
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{NodeName: &node, Conditions: c})
	}
	return out
}

// Text is addresses with blanks in between.
func Text(addresses []netip.Addr) string {
	return strings.Trim(fmt.Sprint(addresses), "[]")
}

// The families of addresses.
const (
	V4 = corev1.IPv4Protocol
	V6 = corev1.IPv6Protocol
)

// TwoNodes are dual-stack.
func TwoNodes() []*corev1.Node {
	return []*corev1.Node{Node("b", "10.0.0.2", "fd00::2"), Node("a", "10.0.0.1", "fd00::1")}
}

// NodePortService is a Service with a node port.
func NodePortService(name string, age int, port int32) *corev1.Service {
	return Service(name, age, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort; s.Spec.Ports[0].NodePort = port })
}

// ExternalService is a Service with an external IP.
func ExternalService(name string, age int, ip string) *corev1.Service {
	return Service(name, age, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.ExternalIPs = []string{ip}
	})
}

// Ranges are the address ranges of texts.
func Ranges(texts ...string) []loadbalancer.Range {
	out, err := loadbalancer.Parse(texts)
	if err != nil {
		panic(err)
	}
	return out
}

// Annotated gives a Service an annotation.
func Annotated(name, value string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[name] = value
	}
}

// Having gives a Service addresses in its status.
func Having(addresses ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for _, a := range addresses {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

// WithPorts has the status, which Having has made, say which ports the Service has.
func WithPorts(s *corev1.Service) {
	for i := range s.Status.LoadBalancer.Ingress {
		for _, p := range s.Spec.Ports {
			p := loadbalancer.PortOf(p.Protocol, p.Port)
			s.Status.LoadBalancer.Ingress[i].Ports = append(s.Status.LoadBalancer.Ingress[i].Ports, corev1.PortStatus{Port: p.Number, Protocol: p.Protocol})
		}
	}
}
