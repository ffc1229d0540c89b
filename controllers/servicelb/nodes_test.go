// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNodesAreNotBelieved: what a Service has from a pool, what another node has and what is a server's or the API's is no node's because that says so.
func TestNodesAreNotBelieved(t *testing.T) {
	pooled := testService("pooled", 0, annotated(PoolAnnotation, "default"))
	nodes := testService("nodes", 1, annotated(NodesAnnotation, "true"))
	s := &State{Services: []*corev1.Service{pooled, nodes}, Nodes: []*corev1.Node{testNode("a", "10.0.0.1"), testNode("b", "10.0.0.2")}, Pools: flagged("10.0.0.200-10.0.0.201"),
		Barred: []netip.Addr{netip.MustParseAddr("10.0.0.99"), netip.MustParseAddr("10.0.0.3")}}
	settle := func() string {
		for range 3 {
			plan := Plan(s)
			for _, svc := range s.Services {
				status, _ := StatusOf(svc, plan[key(svc)])
				svc.Status = *status
			}
		}
		return ingressText(pooled.Status.LoadBalancer) + ", " + ingressText(nodes.Status.LoadBalancer)
	}
	expect := func(what, want string) {
		t.Helper()
		if got := settle(); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("at first", "10.0.0.200, 10.0.0.1 10.0.0.2")
	takenOver := testNode("c", "ext:10.0.0.200", "ext:10.0.0.1", "10.0.0.99", "10.0.0.4")
	takenOver.CreationTimestamp = metav1.NewTime(epoch.Add(time.Hour))
	s.Nodes = append(s.Nodes, takenOver)
	expect("a node says that it has others' addresses", "10.0.0.200, 10.0.0.1 10.0.0.2 10.0.0.4")
	ready(s.Nodes[0], false)
	expect("a dead one's is who took its place", "10.0.0.200, 10.0.0.2 10.0.0.1 10.0.0.4")
	ready(s.Nodes[0], true)
	pooled.Annotations[NodesAnnotation] = "true"
	pooled.Spec.Ports[0].Port = 80
	expect("it gives the address of the pool up", "10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4, 10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4")
	server := with(testNode("server", "10.0.0.3"), serverLabel, "true")
	s.Nodes = append(s.Nodes, server)
	expect("a server's own", "10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4 10.0.0.3, 10.0.0.1 10.0.0.2 10.0.0.200 10.0.0.4 10.0.0.3")
	if got := fmt.Sprint(s.believed()["c"]); got != "[10.0.0.200 10.0.0.4]" {
		t.Errorf("of c is believed %s", got)
	}
}
