// SPDX-License-Identifier: Apache-2.0

package servicelb_test

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

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/test/services/lb"
)

// TestNodePortTakesNoPort: a Service asks for the node port that another namespace's has as its port at nodes'
// addresses.
func TestNodePortTakesNoPort(t *testing.T) {
	web := lb.Service("web", 1, lb.OnPorts("30080/TCP"), lb.Having("10.0.0.1"), lb.WithPorts)
	thief := lb.Service("thief", 0, func(s *corev1.Service) {
		s.Namespace, s.Spec.Type, s.Spec.Ports[0].NodePort = "mallory", corev1.ServiceTypeNodePort, 30080
	})
	s := &servicelb.State{Services: []*corev1.Service{web, thief}, Nodes: lb.TwoNodes()}
	state := func() (served, refused string) {
		t.Helper()
		servicelb.PlanAndWrite(s)
		if c := meta.FindStatusCondition(thief.Status.Conditions, servicelb.NodePortCondition); c != nil {
			refused = c.Message
		}
		return servicelb.IngressText(web.Status.LoadBalancer), refused
	}
	const want = "the node port 30080/TCP is not opened: the Service default/web has it at nodes' addresses"
	if served, refused := state(); served != "10.0.0.1 10.0.0.2" || !strings.HasPrefix(refused, want) {
		t.Errorf("it has %s, and the other one reads %q", served, refused)
	}
	lb.Ready(s.Nodes[0], false)
	lb.Ready(s.Nodes[1], false)
	lb.LocalOnly(web)
	if served, refused := state(); served != "none" || refused == "" {
		t.Errorf("while it is not served it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.ExternalTrafficPolicy = ""
	s.Nodes = append(s.Nodes, lb.Node("c", "10.0.0.3"))
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
	thief := lb.Service("thief", 0, func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080 })
	client := fake.NewClientset(lb.Service("web", 1, lb.OnPorts("30080/TCP")), lb.Node("a", "10.0.0.1"))
	events, stop := servicelb.RunController(t, client, false)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.1")
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
	if err != nil || meta.FindStatusCondition(s.Status.Conditions, servicelb.NodePortCondition) == nil {
		t.Errorf("its conditions: %v, %v", s.Status.Conditions, err)
	}
	_, stop = servicelb.RunController(t, client, true) // the load balancer is switched off
	servicelb.AwaitAddresses(t, client, "web", "none")
	stop()
}

// TestWholeRangeIsNotClosed: one Service that asks for all ports of the node ports' range, and had them before, closes
// none of those that the API server gives out.
func TestWholeRangeIsNotClosed(t *testing.T) {
	wide := lb.Service("wide", 0, func(s *corev1.Service) {
		s.Namespace, s.Spec.Ports = "other", nil
		for p := int32(30000); p <= 32767; p++ {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", p), Port: p, Protocol: corev1.ProtocolTCP})
		}
	})
	late := lb.NodePortService("late", 5, 31777)
	for _, had := range []bool{false, true} {
		s := &servicelb.State{Services: []*corev1.Service{wide}, Nodes: lb.TwoNodes(), NodePorts: utilnet.PortRange{Base: 30000, Size: 2768}}
		if had {
			lb.Having("10.0.0.1", "10.0.0.2")(wide)
			lb.WithPorts(wide)
		}
		servicelb.PlanAndWrite(s)
		s.Services = []*corev1.Service{wide, late}
		servicelb.PlanAndWrite(s)
		if c := meta.FindStatusCondition(late.Status.Conditions, servicelb.NodePortCondition); c != nil {
			t.Errorf("it had them: %v; a port that the API server chose: %s", had, c.Message)
		}
	}
}
