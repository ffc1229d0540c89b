// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNodePortTakesNoPort: a Service asks for the node port that another namespace's has as its port at nodes'
// addresses.
func TestNodePortTakesNoPort(t *testing.T) {
	web := testService("web", 1, onPorts("30080/TCP"), having("10.0.0.1"), withPorts)
	thief := testService("thief", 0, func(s *corev1.Service) {
		s.Namespace, s.Spec.Type, s.Spec.Ports[0].NodePort = "mallory", corev1.ServiceTypeNodePort, 30080
	})
	s := &State{Services: []*corev1.Service{web, thief}, Nodes: twoNodes()}
	state := func() (served, refused string) {
		t.Helper()
		planAndWrite(s)
		if c := meta.FindStatusCondition(thief.Status.Conditions, NodePortCondition); c != nil {
			refused = c.Message
		}
		return ingressText(web.Status.LoadBalancer), refused
	}
	const want = "the node port 30080/TCP is not opened: the Service default/web has it at nodes' addresses"
	if served, refused := state(); served != "10.0.0.1 10.0.0.2" || !strings.HasPrefix(refused, want) {
		t.Errorf("it has %s, and the other one reads %q", served, refused)
	}
	ready(s.Nodes[0], false)
	ready(s.Nodes[1], false)
	localOnly(web)
	if served, refused := state(); served != "none" || refused == "" {
		t.Errorf("while it is not served it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.ExternalTrafficPolicy = ""
	s.Nodes = append(s.Nodes, testNode("c", "10.0.0.3"))
	if served, refused := state(); served != "10.0.0.3" || refused == "" {
		t.Errorf("on a new node it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.Ports[0].Port = 80
	if served, refused := state(); served != "10.0.0.3" || refused != "" || len(thief.Status.Conditions) != 0 {
		t.Errorf("without the port it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.Ports[0].Port = 30080
	if served, refused := state(); served != "none" || refused != "" {
		t.Errorf("it wants the port back: it has %s, and the other one reads %q", served, refused)
	}
}

// TestNodePortIsRefusedInWords: who has asked for the node port reads why it is not opened, in an event and a
// condition, once.
func TestNodePortIsRefusedInWords(t *testing.T) {
	thief := testService("thief", 0, func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080 })
	client := fake.NewClientset(testService("web", 1, onPorts("30080/TCP")), testNode("a", "10.0.0.1"))
	events, stop := run(t, client, false)
	awaitAddresses(t, client, "web", "10.0.0.1")
	if _, err := client.CoreV1().Services("default").Create(t.Context(), thief, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for heard := false; !heard; {
		select {
		case e := <-events:
			heard = strings.HasPrefix(e, "Warning NodePortInUse the node port 30080/TCP is not opened: the Service default/web has it")
		case <-time.After(2 * time.Minute):
			t.Fatal("no event says that the node port is in use")
		}
	}
	stop()
	s, err := client.CoreV1().Services("default").Get(t.Context(), "thief", metav1.GetOptions{})
	if err != nil || meta.FindStatusCondition(s.Status.Conditions, NodePortCondition) == nil {
		t.Errorf("its conditions: %v, %v", s.Status.Conditions, err)
	}
	_, stop = run(t, client, true) // the load balancer is switched off
	awaitAddresses(t, client, "web", "none")
	stop()
}

// withNodePorts gives a Service's ports node ports, one after the other.
func withNodePorts(numbers ...int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for i, n := range numbers {
			s.Spec.Ports[i].NodePort = n
		}
	}
}

// TestPortsOfNodePorts: at nodes' addresses a Service has a port of the node ports' range only if that is its own node
// port, also if it has had it before.
func TestPortsOfNodePorts(t *testing.T) {
	const refused = "port 30080/TCP is of the range from which node ports are given out (30000-32767)"
	had := []func(*corev1.Service){having("10.0.0.1", "10.0.0.2"), withPorts}
	for name, c := range map[string]struct {
		change []func(*corev1.Service)
		pools  []Pool
		want   string
	}{
		"no node port":                        {change: []func(*corev1.Service){onPorts("30080/TCP")}},
		"another node port":                   {change: []func(*corev1.Service){onPorts("30080/TCP"), withNodePorts(30081)}},
		"its own of another protocol":         {change: []func(*corev1.Service){onPorts("30080/TCP", "30081/UDP"), withNodePorts(0, 30080)}},
		"one port of several":                 {change: []func(*corev1.Service){onPorts("443/TCP", "30080/TCP"), withNodePorts(30443, 30444)}},
		"it has had it":                       {change: append([]func(*corev1.Service){onPorts("30080/TCP")}, had...)},
		"its own node port":                   {change: []func(*corev1.Service){onPorts("30080/TCP"), withNodePorts(30080)}, want: "10.0.0.1 10.0.0.2"},
		"its own node port of UDP":            {change: []func(*corev1.Service){onPorts("30080/UDP"), withNodePorts(30080)}, want: "10.0.0.1 10.0.0.2"},
		"outside of the range, below":         {change: []func(*corev1.Service){onPorts("29999/TCP")}, want: "10.0.0.1 10.0.0.2"},
		"outside of the range, above":         {change: []func(*corev1.Service){onPorts("32768/TCP"), withNodePorts(30080)}, want: "10.0.0.1 10.0.0.2"},
		"an address of a pool is all its own": {change: []func(*corev1.Service){onPorts("30080/TCP")}, pools: flagged("10.0.0.200-10.0.0.200"), want: "10.0.0.200"},
	} {
		t.Run(name, func(t *testing.T) {
			web := testService("web", 0, c.change...)
			s := &State{Services: []*corev1.Service{web}, Nodes: twoNodes(), Pools: c.pools, NodePorts: utilnet.PortRange{Base: 30000, Size: 2768}}
			v := Plan(s)[key(web)]
			if text(v.Addresses) != c.want || len(v.kept) > 0 {
				t.Errorf("it has %q, want %q; kept %v: %s", text(v.Addresses), c.want, v.kept, v.Message)
			}
			if c.want == "" && (v.Reason != ReasonNodePortRange || !strings.HasPrefix(v.Message, refused)) {
				t.Errorf("it reads %s: %s", v.Reason, v.Message)
			}
		})
	}
}

// TestWholeRangeIsNotClosed: one Service that asks for all ports of the node ports' range, and had them before, closes
// none of those that the API server gives out.
func TestWholeRangeIsNotClosed(t *testing.T) {
	wide := testService("wide", 0, func(s *corev1.Service) {
		s.Namespace, s.Spec.Ports = "other", nil
		for p := int32(30000); p <= 32767; p++ {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", p), Port: p, Protocol: corev1.ProtocolTCP})
		}
	})
	late := nodePortService("late", 5, 31777)
	for _, had := range []bool{false, true} {
		s := &State{Services: []*corev1.Service{wide}, Nodes: twoNodes(), NodePorts: utilnet.PortRange{Base: 30000, Size: 2768}}
		if had {
			having("10.0.0.1", "10.0.0.2")(wide)
			withPorts(wide)
		}
		planAndWrite(s)
		s.Services = []*corev1.Service{wide, late}
		planAndWrite(s)
		if c := meta.FindStatusCondition(late.Status.Conditions, NodePortCondition); c != nil {
			t.Errorf("it had them: %v; a port that the API server chose: %s", had, c.Message)
		}
	}
}
