// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	v4 = corev1.IPv4Protocol
	v6 = corev1.IPv6Protocol
)

// twoNodes are dual-stack.
func twoNodes() []*corev1.Node {
	return []*corev1.Node{testNode("b", "10.0.0.2", "fd00::2"), testNode("a", "10.0.0.1", "fd00::1")}
}

func TestPlanGivesAddressesOfNodes(t *testing.T) {
	for name, c := range map[string]struct {
		state State
		want  string // of the Service web
		why   string // is in its message
	}{
		"all nodes, by name": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"its family":         {State{Services: []*corev1.Service{testService("web", 0, families(v6))}, Nodes: twoNodes()}, "fd00::1 fd00::2", ""},
		"both families, its first one first": {State{Services: []*corev1.Service{testService("web", 0, families(v6, v4))}, Nodes: twoNodes()[1:]},
			"fd00::1 10.0.0.1", ""},
		"an external address too": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1", "ext:198.51.100.7")}},
			"198.51.100.7 10.0.0.1", ""},
		"ready nodes": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1"), ready(testNode("b", "10.0.0.2"), false)}},
			"10.0.0.1", ""},
		"all of them where none is ready": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{ready(testNode("a", "10.0.0.1"), false)}}, "10.0.0.1", ""},
		"labelled nodes": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1"), with(testNode("b", "10.0.0.2"), NodeLabel, "true")}},
			"10.0.0.2", ""},
		"labelled as with k3s": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1"), with(testNode("b", "10.0.0.2"), k3sNodeLabel, "true")}},
			"10.0.0.2", ""},
		"labelled nodes, none of them ready": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1"), with(ready(testNode("b", "10.0.0.2"), false), NodeLabel, "true")}},
			"10.0.0.2", ""},
		"excluded nodes": {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: []*corev1.Node{with(testNode("a", "10.0.0.1"), corev1.LabelNodeExcludeBalancers, ""), testNode("b", "10.0.0.2")}},
			"10.0.0.2", ""},
		"no node": {State{Services: []*corev1.Service{testService("web", 0)}}, "", "no node has an address"},
		"no node of its family": {State{Services: []*corev1.Service{testService("web", 0, families(v6))}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1")}},
			"", "no node has an address"},
		"a local one": {State{Services: []*corev1.Service{testService("web", 0, localOnly)}, Nodes: twoNodes(), Slices: []*discoveryv1.EndpointSlice{slice("web", "a:unready", "b")}},
			"10.0.0.2", ""},
		"a local one that ends": {State{Services: []*corev1.Service{testService("web", 0, localOnly)}, Nodes: twoNodes(), Slices: []*discoveryv1.EndpointSlice{slice("web", "a:unready", "b:ending")}},
			"10.0.0.2", ""},
		"a local one, one ends": {State{Services: []*corev1.Service{testService("web", 0, localOnly)}, Nodes: twoNodes(), Slices: []*discoveryv1.EndpointSlice{slice("web", "a", "b:ending")}},
			"10.0.0.1", ""},
		"a local one without endpoints": {State{Services: []*corev1.Service{testService("web", 0, localOnly)}, Nodes: twoNodes()}, "", "no node that can serve has a ready endpoint"},
		"its class":                     {State{Services: []*corev1.Service{testService("web", 0, class(Class))}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"the address it asks for":       {State{Services: []*corev1.Service{testService("web", 0, loadBalancerIP("10.0.0.2"))}, Nodes: twoNodes()}, "10.0.0.2", ""},
		"an address no node has":        {State{Services: []*corev1.Service{testService("web", 0, loadBalancerIP("10.0.0.9"))}, Nodes: twoNodes()}, "", "no node has that can serve it"},
		"the port of an older one": {State{Services: []*corev1.Service{testService("web", 1), testService("older", 0)}, Nodes: twoNodes()},
			"", "port 443/TCP at 10.0.0.1: the Service default/older has it"},
		"the port of a younger one":     {State{Services: []*corev1.Service{testService("web", 0), testService("younger", 1)}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"other protocol, same port":     {State{Services: []*corev1.Service{testService("web", 1, onPorts("443/UDP")), testService("older", 0)}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"other family, same port":       {State{Services: []*corev1.Service{testService("web", 1, families(v6)), testService("older", 0)}, Nodes: twoNodes()}, "fd00::1 fd00::2", ""},
		"a port of another class's":     {State{Services: []*corev1.Service{testService("web", 1), testService("older", 0, class("example.com/other"))}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"a host port on one node":       {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: twoNodes(), Pods: []*corev1.Pod{hostPortPod("ingress", "a", "ingress", 443)}}, "10.0.0.2", "at 10.0.0.1: the host port of the pod default/ingress"},
		"a host port of its own pod":    {State{Services: []*corev1.Service{testService("web", 0)}, Nodes: twoNodes(), Pods: []*corev1.Pod{hostPortPod("ingress", "a", "web", 443)}}, "10.0.0.1 10.0.0.2", ""},
		"a reserved port":               {State{Services: []*corev1.Service{testService("web", 0, onPorts("80/TCP", "6443/TCP"))}, Nodes: twoNodes()}, "", "the API server has it"},
		"a reserved port's other half":  {State{Services: []*corev1.Service{testService("web", 0, onPorts("6443/UDP"))}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"another one's node port":       {State{Services: []*corev1.Service{testService("web", 0, onPorts("30001/TCP")), nodePortService("np", 1, 30001)}, Nodes: twoNodes()}, "", "the node port of the Service default/np"},
		"an external address of others": {State{Services: []*corev1.Service{testService("web", 1), externalService("ext", 0, "10.0.0.2")}, Nodes: twoNodes()}, "10.0.0.1 10.0.0.2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.state.Reserved = map[Port]string{loadbalancer.PortOf(corev1.ProtocolTCP, 6443): "the API server"}
			v := Plan(&c.state)[types.NamespacedName{Namespace: "default", Name: "web"}]
			if got := text(v.Addresses); got != c.want || !v.Ours {
				t.Errorf("got %q (%+v), want %q", got, v, c.want)
			}
			if !strings.Contains(v.Message, c.why) || (c.why == "") != (v.Reason == ReasonServed) {
				t.Errorf("reason %q, message %q, want %q in it", v.Reason, v.Message, c.why)
			}
		})
	}
}

func TestPlanLeavesOthersAlone(t *testing.T) {
	clusterIP := testService("inside", 0, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	s := &State{Services: []*corev1.Service{testService("other", 0, class("example.com/lb")), clusterIP}, Nodes: twoNodes()}
	testenv.Equal(t, len(Plan(s)), 0, "")
	s = &State{Services: []*corev1.Service{testService("web", 0)}, Nodes: twoNodes(), Disabled: true}
	testenv.Equal(t, len(Plan(s)), 0, "switched off, it gives")
}

func nodePortService(name string, age int, port int32) *corev1.Service {
	return testService(name, age, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort; s.Spec.Ports[0].NodePort = port })
}

func externalService(name string, age int, ip string) *corev1.Service {
	return testService(name, age, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.ExternalIPs = []string{ip}
	})
}

func TestServiceStatusIsWrittenOnlyWhenChanged(t *testing.T) {
	svc := testService("web", 0)
	v := Plan(&State{Services: []*corev1.Service{svc}, Nodes: twoNodes()})[key(svc)]
	first, changed := StatusOf(svc, v)
	if !changed || len(first.LoadBalancer.Ingress) != 2 || *first.LoadBalancer.Ingress[0].IPMode != corev1.LoadBalancerIPModeVIP {
		t.Fatalf("got %+v, %v", first, changed)
	}
	svc.Status = *first
	svc.Generation++
	if again, changed := StatusOf(svc, v); changed {
		t.Errorf("the same is written again: %+v", again)
	}
	svc.Status.Conditions = append(svc.Status.Conditions, first.Conditions[0])
	svc.Status.Conditions[1].Type = "example.com/other"
	gone, changed := StatusOf(svc, Allocation{})
	if !changed || len(gone.LoadBalancer.Ingress) != 0 || len(gone.Conditions) != 1 || gone.Conditions[0].Type != "example.com/other" {
		t.Errorf("got %+v, %v", gone, changed)
	}
	svc.Status = *gone
	svc.Status.LoadBalancer.Ingress = first.LoadBalancer.Ingress
	if status, changed := StatusOf(svc, Allocation{}); changed {
		t.Errorf("another one's addresses are taken away: %+v", status)
	}
}
