// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
)

// What TestSameRulesAsKubeProxy has both proxies serve.

// dualService is the i-th Service, of both families, with one port.
func dualService(i int, change ...func(*corev1.Service)) *corev1.Service {
	four, six := fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200), fmt.Sprintf("fd43::%x", 1+i)
	s := services.New(fmt.Sprint("s", i), []string{four, six}, corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80})
	s.Spec.SessionAffinity = corev1.ServiceAffinityNone
	for _, f := range change {
		f(s)
	}
	return s
}

// sliceOf is a Service's slice of one family, with all of its ports.
func sliceOf(s *corev1.Service, family discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: fmt.Sprint(s.Name, "-", family), Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
		},
		AddressType: family, Endpoints: endpoints,
	}
	for i, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Port: ptr.To(int32(8000 + i)), Protocol: ptr.To(p.Protocol)})
	}
	return out
}

func oneService(change func(*corev1.Service)) []served {
	s := dualService(0, change)
	return []served{{s, []*discoveryv1.EndpointSlice{sliceOf(s, discoveryv1.AddressTypeIPv4, services.At("10.42.0.5", "n1", "rs"), services.At("10.42.1.5", "n2", "rs"))}}}
}

func ingressAt(s *corev1.Service, ip string) {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
}

// shapes are what a Service may ask for; each is applied to one of its own, or several to one.
func shapes(i int) []func(*corev1.Service) {
	nodePort := func(s *corev1.Service) {
		if s.Spec.Type == corev1.ServiceTypeClusterIP {
			s.Spec.Type = corev1.ServiceTypeNodePort
		}
		for k := range s.Spec.Ports {
			s.Spec.Ports[k].NodePort = int32(30000 + 4*i + k)
		}
	}
	return []func(*corev1.Service){
		func(*corev1.Service) {},
		nodePort,
		func(s *corev1.Service) { nodePort(s); ingressAt(s, fmt.Sprintf("203.0.113.%d", 1+i)) },
		func(s *corev1.Service) { nodePort(s); ingressAt(s, fmt.Sprintf("2001:db8:f::%x", 1+i)) },
		func(s *corev1.Service) {
			ingressAt(s, fmt.Sprintf("203.0.113.%d", 1+i))
			s.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
			s.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", "192.0.2.0/28"}
		},
		func(s *corev1.Service) { // addresses of a balancer that answers itself
			nodePort(s)
			ingressAt(s, fmt.Sprintf("203.0.113.%d", 1+i))
			s.Status.LoadBalancer.Ingress[0].IPMode = ptr.To(corev1.LoadBalancerIPModeProxy)
		},
		func(s *corev1.Service) { // our own load balancer gives the node's address, and a port of it to one Service
			ingressAt(s, netns.NodeIP)
			s.Spec.Ports = []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: int32(10000 + i)}}
		},
		func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{fmt.Sprintf("198.51.100.%d", 1+i), fmt.Sprintf("2001:db8:e::%x", 1+i)}
		},
		func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](90)}}
		},
		func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		},
		func(s *corev1.Service) {
			nodePort(s)
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.HealthCheckNodePort = int32(40000 + i)
		},
		func(s *corev1.Service) {
			if len(s.Spec.Ports) == 1 { // others may have the node's address, too
				s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: int32(11000 + i)},
					corev1.ServicePort{Name: "assoc", Protocol: corev1.ProtocolSCTP, Port: int32(12000 + i)})
			}
		},
		func(s *corev1.Service) {
			s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameZone)
		},
		func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
		func(s *corev1.Service) { // of one family
			s.Spec.ClusterIPs, s.Spec.IPFamilies = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1]
		},
		func(s *corev1.Service) { // a name alone
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org", Ports: s.Spec.Ports}
		},
	}
}

// endpointsOf are what may stand behind a Service.
func endpointsOf(i int) [][]discoveryv1.Endpoint {
	here, there := fmt.Sprintf("10.42.0.%d", 10+i%200), fmt.Sprintf("10.42.1.%d", 10+i%200)
	return [][]discoveryv1.Endpoint{
		nil,
		{services.At(here, "n1", "rs")},
		{services.At(there, "n2", "rs")},
		{services.At(here, "n1", "rs"), services.At(there, "n2", "rs")},
		{services.At(here, "n1", "nst"), services.At(there, "n2", "rs")}, // one is on its way out
		{services.At(here, "n1", "nst"), services.At(there, "n2", "nt")}, // both are, and one serves still
		{services.At(here, "n1", "n"), services.At(there, "n2", "n")},
		{services.At(here, "n1", "rs", "east"), services.At(there, "n2", "rs", "west")},
		{services.At(here, "n1", "rs", "west"), services.At(there, "n2", "rs", "east")},
		{services.At(here, "n1", "rs", "west"), services.At(there, "n2", "rs", "west")},
		{services.At(here, "n1", ""), services.At(there, "n2", "rs", "east")},
		{services.ForNode(services.At(here, "n1", "rs", "east"), "n1"), services.ForNode(services.At(there, "n2", "rs", "east"), "n2")},
	}
}

func with(s *corev1.Service, endpoints []discoveryv1.Endpoint) served {
	out := served{service: s}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return out
	}
	if len(endpoints) > 0 {
		out.slices = append(out.slices, sliceOf(s, discoveryv1.AddressTypeIPv4, endpoints...))
	}
	if len(s.Spec.IPFamilies) > 1 {
		out.slices = append(out.slices, sliceOf(s, discoveryv1.AddressTypeIPv6, services.At(fmt.Sprintf("fd42::%x", len(s.Name)+len(endpoints)), "n1", "rs")))
	}
	return out
}

// kindsOfServices has each shape with each kind of endpoints.
func kindsOfServices() []served {
	var out []served
	i := 0
	for k := range shapes(0) {
		for e := range endpointsOf(0) {
			out = append(out, with(dualService(i, shapes(i)[k]), endpointsOf(i)[e]))
			i++
		}
	}
	return out
}

// anyServices have up to four shapes each.
func anyServices(r *rand.Rand, n int) []served {
	var out []served
	for i := range n {
		s := dualService(i)
		for range 1 + r.IntN(4) {
			if s.Spec.Type != corev1.ServiceTypeExternalName {
				shapes(i)[r.IntN(len(shapes(i)))](s)
			}
		}
		out = append(out, with(s, endpointsOf(i)[r.IntN(len(endpointsOf(i)))]))
	}
	return out
}
