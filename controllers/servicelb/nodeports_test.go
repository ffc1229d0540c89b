// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNodePortTakesNoPort: a Service asks for the node port that another namespace's has as its port at nodes' addresses.
func TestNodePortTakesNoPort(t *testing.T) {
	web := testService("web", 1, onPorts("30080/TCP"), having("10.0.0.1"), withPorts)
	thief := testService("thief", 0, func(s *corev1.Service) {
		s.Namespace, s.Spec.Type, s.Spec.Ports[0].NodePort = "mallory", corev1.ServiceTypeNodePort, 30080
	})
	s := &State{Services: []*corev1.Service{web, thief}, Nodes: twoNodes()}
	settle := func() (served, refused string) {
		t.Helper()
		for range 3 {
			plan := Plan(s)
			for _, svc := range s.Services {
				status, _ := StatusOf(svc, plan[key(svc)])
				svc.Status = *status
			}
		}
		if c := meta.FindStatusCondition(thief.Status.Conditions, NodePortCondition); c != nil {
			refused = c.Message
		}
		return ingressText(web.Status.LoadBalancer), refused
	}
	const want = "the node port 30080/TCP is not opened: the Service default/web has it at nodes' addresses"
	if served, refused := settle(); served != "10.0.0.1 10.0.0.2" || !strings.HasPrefix(refused, want) {
		t.Errorf("it has %s, and the other one reads %q", served, refused)
	}
	ready(s.Nodes[0], false)
	ready(s.Nodes[1], false)
	localOnly(web)
	if served, refused := settle(); served != "none" || refused == "" {
		t.Errorf("while it is not served it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.ExternalTrafficPolicy = ""
	s.Nodes = append(s.Nodes, testNode("c", "10.0.0.3"))
	if served, refused := settle(); served != "10.0.0.3" || refused == "" {
		t.Errorf("on a new node it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.Ports[0].Port = 80
	if served, refused := settle(); served != "10.0.0.3" || refused != "" || len(thief.Status.Conditions) != 0 {
		t.Errorf("without the port it has %s, and the other one reads %q", served, refused)
	}
	web.Spec.Ports[0].Port = 30080
	if served, refused := settle(); served != "none" || refused != "" {
		t.Errorf("it wants the port back: it has %s, and the other one reads %q", served, refused)
	}
}

// TestNodePortIsRefusedInWords: who has asked for the node port reads why it is not opened, in an event and a condition, once.
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
		case <-time.After(time.Minute):
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
