// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// epoch is when the first Service of a test was made.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// testService is a Service of type LoadBalancer that was made so many seconds after the first one.
func testService(name string, age int, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(age) * time.Second))},
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

func onPorts(texts ...string) func(*corev1.Service) {
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

func families(f ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.IPFamilies = f }
}

func class(name string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &name }
}

func localOnly(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func loadBalancerIP(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerIP = ip }
}

// testNode is a ready node; an address that begins with "ext:" is an external one.
func testNode(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, a := range addresses {
		kind := corev1.NodeInternalIP
		if rest, ext := strings.CutPrefix(a, "ext:"); ext {
			a, kind = rest, corev1.NodeExternalIP
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a})
	}
	return ready(n, true)
}

func ready(n *corev1.Node, is bool) *corev1.Node {
	status := corev1.ConditionTrue
	if !is {
		status = corev1.ConditionUnknown
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	return n
}

func with(n *corev1.Node, label, value string) *corev1.Node {
	n.Labels[label] = value
	return n
}

func hostPortPod(name, on, app string, port int32) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{NodeName: on, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: port, HostPort: port, Protocol: corev1.ProtocolTCP}}}}},
	}
}

// slice is a Service's endpoints, each as NODE, NODE:ending or NODE:unready.
func slice(service string, endpoints ...string) *discoveryv1.EndpointSlice {
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

// text is addresses with blanks in between.
func text(addresses []netip.Addr) string {
	return strings.Trim(fmt.Sprint(addresses), "[]")
}

// planAndWrite plans and writes until nothing is left to be written.
func planAndWrite(s *State) {
	for range 3 {
		plan := Plan(s)
		for _, svc := range s.Services {
			status, _ := StatusOf(svc, plan[key(svc)])
			svc.Status = *status
		}
	}
}
