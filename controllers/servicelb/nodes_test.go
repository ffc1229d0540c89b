// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNodesClaimsAreNotTrusted: what a Service has from a pool, what another node has and what is a server's or the
// API's is no node's because that says so.
func TestNodesClaimsAreNotTrusted(t *testing.T) {
	pooled := lb.Service("pooled", 0, lb.Annotated(PoolAnnotation, "default"))
	nodes := lb.Service("nodes", 1, lb.Annotated(NodesAnnotation, "true"))
	s := &State{Services: []*corev1.Service{pooled, nodes}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1"), lb.Node("b", "10.0.0.2")}, Pools: flagged("10.0.0.200-10.0.0.201"),
		Barred: []netip.Addr{netip.MustParseAddr("10.0.0.99"), netip.MustParseAddr("10.0.0.3")}}
	state := func() string {
		planAndWrite(s)
		return ingressText(pooled.Status.LoadBalancer) + ", " + ingressText(nodes.Status.LoadBalancer)
	}
	expect := func(what, want string) {
		t.Helper()
		testenv.Equal(t, state(), want, "%s:", what)
	}
	expect("at first", "10.0.0.200, 10.0.0.1 10.0.0.2")
	takenOver := lb.Node("c", "ext:10.0.0.200", "ext:10.0.0.1", "10.0.0.99", "10.0.0.4")
	takenOver.CreationTimestamp = metav1.NewTime(lb.Epoch.Add(time.Hour))
	s.Nodes = append(s.Nodes, takenOver)
	expect("a node says that it has others' addresses", "10.0.0.200, 10.0.0.1 10.0.0.2 10.0.0.4")
	lb.Ready(s.Nodes[0], false)
	expect("a dead one's is who took its place", "10.0.0.200, 10.0.0.2 10.0.0.1 10.0.0.4")
	lb.Ready(s.Nodes[0], true)
	pooled.Annotations[NodesAnnotation] = "true"
	pooled.Spec.Ports[0].Port = 80
	expect("it gives the address of the pool up", "10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4, 10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4")
	server := lb.With(lb.Node("server", "10.0.0.3"), serverLabel, "true")
	s.Nodes = append(s.Nodes, server)
	expect("a server's own", "10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4 10.0.0.3, 10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4 10.0.0.3")
	testenv.Equal(t, fmt.Sprint(s.trusted()["c"]), "[10.0.0.200 10.0.0.4]", "of c is trusted")
}

// TestMappedAddressesEqualTheirShortForm: an address is the same in both its forms, and only the short one can be in a
// Service's status.
func TestMappedAddressesEqualTheirShortForm(t *testing.T) {
	dual := lb.Service("dual", 0, lb.Families(corev1.IPv4Protocol, corev1.IPv6Protocol))
	s := &State{
		Services: []*corev1.Service{dual}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1", "fd00::1"), lb.Node("c", "::ffff:10.0.0.4", "::ffff:10.0.0.1", "::ffff:10.0.0.99")},
		Barred: []netip.Addr{netip.MustParseAddr("10.0.0.99")},
	}
	testenv.Equal(t, fmt.Sprint(s.trusted()["c"]), "[10.0.0.4]", "of c is trusted")
	status, _ := StatusOf(dual, Plan(s)[serviceKey(dual)])
	for _, in := range status.LoadBalancer.Ingress {
		if errs := validation.IsValidIPForLegacyField(field.NewPath("ip"), in.IP, true, nil); len(errs) > 0 {
			t.Errorf("the API server refuses the status: %v", errs)
		}
	}
	testenv.Equal(t, ingressText(status.LoadBalancer), "10.0.0.1 fd00::1 10.0.0.4", "it has")
}

// TestHostIPOfAnotherNode: a pod has host ports at its own node's addresses, whatever host IP it names.
func TestHostIPOfAnotherNode(t *testing.T) {
	web := lb.Service("web", 0)
	s := &State{Services: []*corev1.Service{web}, Nodes: []*corev1.Node{lb.Node("a", "10.0.0.1"), lb.Node("c", "10.0.0.3", "10.0.0.4")}}
	for name, ip := range map[string]string{"elsewhere": "10.0.0.1", "here": "10.0.0.3"} {
		pod := lb.HostPortPod(name, "c", "x", 443)
		pod.Spec.Containers[0].Ports[0].HostIP = ip
		s.Pods = append(s.Pods, pod)
	}
	waiting := lb.HostPortPod("waiting", "", "x", 443)
	waiting.Spec.Containers[0].Ports[0].HostIP = "10.0.0.1"
	s.Pods = append(s.Pods, waiting)
	status, _ := StatusOf(web, Plan(s)[serviceKey(web)])
	if got := ingressText(status.LoadBalancer); got != "10.0.0.1" && got != "10.0.0.1 10.0.0.4" {
		t.Errorf("it has %s", got)
	}
}

// TestHealthChecksKeepTheirPort: no Service gets the port at which nodes answer another Service's health checks, but
// one that had it before keeps it.
func TestHealthChecksKeepTheirPort(t *testing.T) {
	checked := lb.Service("checked", 0, lb.LocalOnly, func(s *corev1.Service) {
		s.Spec.HealthCheckNodePort, s.Spec.LoadBalancerClass = 31999, ptr.To("other.example/lb")
	})
	late := lb.Service("late", 5, lb.OnPorts("31999/TCP"), func(s *corev1.Service) { s.Namespace = "mallory" })
	s := &State{Services: []*corev1.Service{checked, late}, Nodes: lb.TwoNodes()}
	status, _ := StatusOf(late, Plan(s)[serviceKey(late)])
	testenv.Equal(t, ingressText(status.LoadBalancer), "none", "the port of another Service's health checks is given at")
	if c := meta.FindStatusCondition(status.Conditions, Condition); c == nil || !strings.Contains(c.Message, "the health checks of the Service default/checked") {
		t.Errorf("its condition is %v", c)
	}
	early := lb.Service("early", 5, lb.OnPorts("31999/TCP"), lb.Having("10.0.0.1", "10.0.0.2"), lb.WithPorts)
	s.Services = []*corev1.Service{checked, early}
	status, _ = StatusOf(early, Plan(s)[serviceKey(early)])
	testenv.Equal(t, ingressText(status.LoadBalancer), "10.0.0.1 10.0.0.2", "who had the port before has it at")
}

func TestHeartbeatsWakeNoController(t *testing.T) {
	old, now := lb.Node("a", "10.0.0.1"), lb.Node("a", "10.0.0.1")
	now.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(lb.Epoch)
	testenv.False(t, nodeMatters(old, now), "a heartbeat matters")
	if !nodeMatters(old, lb.Ready(now.DeepCopy(), false)) || !nodeMatters(old, lb.With(now.DeepCopy(), NodeLabel, "true")) || !nodeMatters(old, lb.Node("a", "10.0.0.3")) {
		t.Error("a change does not matter")
	}
	pod := lb.HostPortPod("p", "a", "p", 80)
	testenv.True(t, !podMatters(pod, pod) && podMatters(nil, pod) && !podMatters(nil, &corev1.Pod{}), "pods")
	ended := pod.DeepCopy()
	ended.Status.Phase = corev1.PodSucceeded
	testenv.True(t, podMatters(pod, ended), "a pod that has ended does not matter")
}
