// SPDX-License-Identifier: Apache-2.0

package servicelb_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPlanGivesAddressesOfNodes(t *testing.T) {
	for name, c := range map[string]struct {
		state servicelb.State
		want  string // of the Service web
		why   string // is in its message
	}{
		"all nodes, by name": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"its family":         {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.Families(lb.V6))}, Nodes: lb.TwoNodes()}, "fd00::1 fd00::2", ""},
		"both families, its first one first": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.Families(lb.V6, lb.V4))}, Nodes: lb.TwoNodes()[1:]},
			"fd00::1 10.0.0.1", ""},
		"an external address too": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1", "ext:198.51.100.7")}},
			"198.51.100.7 10.0.0.1", ""},
		"ready nodes": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1"), lb.Ready(lb.Node("b", "10.0.0.2"), false)}},
			"10.0.0.1", ""},
		"all of them where none is ready": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.Ready(lb.Node("a", "10.0.0.1"), false)}}, "10.0.0.1", ""},
		"labelled nodes": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1"), lb.With(lb.Node("b", "10.0.0.2"), servicelb.NodeLabel, "true")}},
			"10.0.0.2", ""},
		"labelled as with k3s": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1"), lb.With(lb.Node("b", "10.0.0.2"), clusterconfig.K3sLoadBalancerLabel, "true")}},
			"10.0.0.2", ""},
		"labelled nodes, none of them ready": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1"), lb.With(lb.Ready(lb.Node("b", "10.0.0.2"), false), servicelb.NodeLabel, "true")}},
			"10.0.0.2", ""},
		"excluded nodes": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: []*corev1.Node{lb.With(lb.Node("a", "10.0.0.1"), corev1.LabelNodeExcludeBalancers, ""), lb.Node("b", "10.0.0.2")}},
			"10.0.0.2", ""},
		"no node": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}}, "", "no node has an address"},
		"no node of its family": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.Families(lb.V6))}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1")}},
			"", "no node has an address"},
		"a local one": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.LocalOnly)}, Nodes: lb.TwoNodes(), Slices: []*discoveryv1.EndpointSlice{lb.Slice("web", "a:unready", "b")}},
			"10.0.0.2", ""},
		"a local one that ends": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.LocalOnly)}, Nodes: lb.TwoNodes(), Slices: []*discoveryv1.EndpointSlice{lb.Slice("web", "a:unready", "b:ending")}},
			"10.0.0.2", ""},
		"a local one, one ends": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.LocalOnly)}, Nodes: lb.TwoNodes(), Slices: []*discoveryv1.EndpointSlice{lb.Slice("web", "a", "b:ending")}},
			"10.0.0.1", ""},
		"a local one without endpoints": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.LocalOnly)}, Nodes: lb.TwoNodes()}, "", "no node that can serve has a ready endpoint"},
		"its class":                     {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.Class(servicelb.Class))}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"the address it asks for":       {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.LoadBalancerIP("10.0.0.2"))}, Nodes: lb.TwoNodes()}, "10.0.0.2", ""},
		"an address no node has":        {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.LoadBalancerIP("10.0.0.9"))}, Nodes: lb.TwoNodes()}, "", "no node has that can serve it"},
		"the port of an older one": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 1), lb.Service("older", 0)}, Nodes: lb.TwoNodes()},
			"", "port 443/TCP at 10.0.0.1: the Service default/older has it"},
		"the port of a younger one":     {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0), lb.Service("younger", 1)}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"other protocol, same port":     {servicelb.State{Services: []*corev1.Service{lb.Service("web", 1, lb.OnPorts("443/UDP")), lb.Service("older", 0)}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"other family, same port":       {servicelb.State{Services: []*corev1.Service{lb.Service("web", 1, lb.Families(lb.V6)), lb.Service("older", 0)}, Nodes: lb.TwoNodes()}, "fd00::1 fd00::2", ""},
		"a port of another class's":     {servicelb.State{Services: []*corev1.Service{lb.Service("web", 1), lb.Service("older", 0, lb.Class("example.com/other"))}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"a host port on one node":       {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: lb.TwoNodes(), Pods: []*corev1.Pod{lb.HostPortPod("ingress", "a", "ingress", 443)}}, "10.0.0.2", "at 10.0.0.1: the host port of the pod default/ingress"},
		"a host port of its own pod":    {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: lb.TwoNodes(), Pods: []*corev1.Pod{lb.HostPortPod("ingress", "a", "web", 443)}}, "10.0.0.1 10.0.0.2", ""},
		"a reserved port":               {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.OnPorts("80/TCP", "6443/TCP"))}, Nodes: lb.TwoNodes()}, "", "the API server has it"},
		"a reserved port's other half":  {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.OnPorts("6443/UDP"))}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
		"another one's node port":       {servicelb.State{Services: []*corev1.Service{lb.Service("web", 0, lb.OnPorts("30001/TCP")), lb.NodePortService("np", 1, 30001)}, Nodes: lb.TwoNodes()}, "", "the node port of the Service default/np"},
		"an external address of others": {servicelb.State{Services: []*corev1.Service{lb.Service("web", 1), lb.ExternalService("ext", 0, "10.0.0.2")}, Nodes: lb.TwoNodes()}, "10.0.0.1 10.0.0.2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.state.Reserved = map[servicelb.Port]string{loadbalancer.PortOf(corev1.ProtocolTCP, 6443): "the API server"}
			v := servicelb.Plan(&c.state)[types.NamespacedName{Namespace: "default", Name: "web"}]
			if got := lb.Text(v.Addresses); got != c.want || !v.Ours {
				t.Errorf("got %q (%+v), want %q", got, v, c.want)
			}
			if !strings.Contains(v.Message, c.why) || (c.why == "") != (v.Reason == servicelb.ReasonServed) {
				t.Errorf("reason %q, message %q, want %q in it", v.Reason, v.Message, c.why)
			}
		})
	}
}

func TestPlanLeavesOthersAlone(t *testing.T) {
	clusterIP := lb.Service("inside", 0, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	s := &servicelb.State{Services: []*corev1.Service{lb.Service("other", 0, lb.Class("example.com/lb")), clusterIP}, Nodes: lb.TwoNodes()}
	testenv.Equal(t, len(servicelb.Plan(s)), 0, "")
	s = &servicelb.State{Services: []*corev1.Service{lb.Service("web", 0)}, Nodes: lb.TwoNodes(), Disabled: true}
	testenv.Equal(t, len(servicelb.Plan(s)), 0, "switched off, it gives")
}

func TestServiceStatusIsWrittenOnlyWhenChanged(t *testing.T) {
	svc := lb.Service("web", 0)
	v := servicelb.Plan(&servicelb.State{Services: []*corev1.Service{svc}, Nodes: lb.TwoNodes()})[servicelb.Key(svc)]
	first, changed := servicelb.StatusOf(svc, v)
	if !changed || len(first.LoadBalancer.Ingress) != 2 || *first.LoadBalancer.Ingress[0].IPMode != corev1.LoadBalancerIPModeVIP {
		t.Fatalf("got %+v, %v", first, changed)
	}
	svc.Status = *first
	svc.Generation++
	if again, changed := servicelb.StatusOf(svc, v); changed {
		t.Errorf("the same is written again: %+v", again)
	}
	svc.Status.Conditions = append(svc.Status.Conditions, first.Conditions[0])
	svc.Status.Conditions[1].Type = "example.com/other"
	gone, changed := servicelb.StatusOf(svc, servicelb.Allocation{})
	if !changed || len(gone.LoadBalancer.Ingress) != 0 || len(gone.Conditions) != 1 || gone.Conditions[0].Type != "example.com/other" {
		t.Errorf("got %+v, %v", gone, changed)
	}
	svc.Status = *gone
	svc.Status.LoadBalancer.Ingress = first.LoadBalancer.Ingress
	if status, changed := servicelb.StatusOf(svc, servicelb.Allocation{}); changed {
		t.Errorf("another one's addresses are taken away: %+v", status)
	}
}
