//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Ports of the Services of TestLoadBalancerOfNodes: wide has a pod on each node, and local those with the label near,
// with externalTrafficPolicy: Local.
const widePort, localPort = 8001, 8002

const nodeBalancers = `
apiVersion: v1
kind: Service
metadata: {name: wide}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {tier: all}, ports: [{port: 8001, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local, selector: {near: "yes"}, ports: [{port: 8002, targetPort: 8080}]}
`

// TestLoadBalancerOfNodes: without a pool a Service answers at the addresses of all nodes that it is for, of both
// families, from outside, from nodes and from pods, and at no other node's. With externalTrafficPolicy: Local these are
// the nodes with a pod of it, which sees who asks. What nodes' labels say, and a node's death and return, changes the
// addresses.
func TestLoadBalancerOfNodes(t *testing.T) {
	t.Parallel() // it mostly waits
	m := newMesh(t, 3, "vxlan", "eth0")
	m.workload()
	s := m.nodes[0]
	s.Insists("label", "pods", "box-0", "box-1", "box-2", "tier=all")
	s.Insists("label", "pod", "box-1", "near=yes")
	s.InsistsOn(nodeBalancers)

	m.given("wide", 0, 1, 2)
	m.given("local", 1)
	for i := range m.nodes {
		m.asksEverywhere(i)
	}
	m.keepsClients(1)
	m.closed(localPort, 0, 2)

	s.Insists("label", "pod", "box-2", "near=yes")
	m.given("local", 1, 2)
	m.keepsClients(1, 2)
	s.Insists("label", "pod", "box-1", "near-")
	m.given("local", 2)
	m.closed(localPort, 0, 1)
	m.keepsClients(2)

	label := func(i int, text string) { s.Insists("label", "node", m.nodes[i].NodeName(), text) }
	label(1, "coracle.dev/enable-servicelb=true")
	m.given("wide", 1)
	m.given("local") // its pod is on another node
	s.In(t).Await(harness.Soon, "service/local", conditionPath, "NoNode")
	m.closed(widePort, 0, 2)
	m.closed(localPort, 0, 1, 2)
	m.answers("wide", widePort, 1)
	label(0, "svccontroller.k3s.cattle.io/enablelb=true")
	m.given("wide", 0, 1)
	label(1, "coracle.dev/enable-servicelb-")
	label(0, "svccontroller.k3s.cattle.io/enablelb-")
	m.given("wide", 0, 1, 2)
	m.given("local", 2)
	label(0, "node.kubernetes.io/exclude-from-external-load-balancers=true")
	m.given("wide", 1, 2)
	m.closed(widePort, 0)
	label(0, "node.kubernetes.io/exclude-from-external-load-balancers-")
	m.given("wide", 0, 1, 2)
	m.answers("wide", widePort, 0, 1, 2)

	s.Insists("label", "pod", "box-1", "near=yes")
	m.given("local", 1, 2)
	died := time.Now()
	m.nodes[2].PowerOff()
	m.given("wide", 0, 1)
	t.Logf("a node's addresses are out of a Service's status %v after its death", time.Since(died).Round(10*time.Millisecond))
	m.given("local", 1)
	// Kubernetes' own controller would have noticed in the end, too, and on a busy machine may have done so first.
	harness.Eventually(t, patient, "the server finds that the node is dead", func() error { return s.LogSays("a node is dead") })
	m.answers("wide", widePort, 0, 1)
	m.keepsClients(1)

	m.nodes[2].PowerOn()
	m.start(2)
	m.given("wide", 0, 1, 2)
	m.given("local", 1, 2)
	m.answers("wide", widePort, 0, 1, 2)
	m.keepsClients(1, 2)
}

// given waits until a Service's addresses are those of these nodes, of both families.
func (m *mesh) given(service string, nodes ...int) {
	m.Helper()
	m.has("service/"+service, nodes...)
}

// fromOutside runs a script outside of the machines.
func (m *mesh) fromOutside(text string) string {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return testenv.Must(harness.Output(m.nodes[0].Outside(ctx, "sh", "-c", text)))(m)
}

// asksEverywhere: a node and its pod reach both Services at each address that they have.
func (m *mesh) asksEverywhere(i int) {
	m.Helper()
	var visits []visit
	for _, j := range []int{0, 1, 2} {
		for _, ip := range m.addresses(j) {
			visits = append(visits, visit{fmt.Sprintf("http://%s:%d/", host(ip), widePort), ""})
		}
	}
	for _, ip := range m.addresses(1) {
		visits = append(visits, visit{fmt.Sprintf("http://%s:%d/", host(ip), localPort), "box-1"})
	}
	m.judge(fmt.Sprintf("pod %d", i), m.exec(i, script("testbox", visits)), visits)
	m.judge(fmt.Sprintf("host %d", i), m.run(i, "sh", "-c", script(harness.Box(m), visits)), visits)
	m.judge("outside", m.fromOutside(script(harness.Box(m), visits)), visits)
}

// answers: from outside a Service answers at the addresses of these nodes.
func (m *mesh) answers(service string, port int, nodes ...int) {
	m.Helper()
	for _, i := range nodes {
		var visits []visit
		for _, ip := range m.addresses(i) {
			visits = append(visits, slices.Repeat([]visit{{fmt.Sprintf("http://%s:%d/", host(ip), port), ""}}, 6)...)
		}
		m.judge(service+" from outside", m.fromOutside(script(harness.Box(m), visits)), visits)
	}
}

// keepsClients: at each of these nodes the Service local answers from outside, from the node's own pod, which sees who
// asks.
func (m *mesh) keepsClients(nodes ...int) {
	m.Helper()
	for _, i := range nodes {
		var visits []visit
		for f, ip := range m.addresses(i) {
			url := fmt.Sprintf("http://%s:%d/", host(ip), localPort)
			visits = append(visits, visit{url, fmt.Sprintf("box-%d", i)}, visit{url + "peer", host([]string{harness.OutsideIP, outside6}[f])})
		}
		m.judge("local from outside", m.fromOutside(script(harness.Box(m), visits)), visits)
	}
}

// closed waits until connections from outside to a port of these nodes are refused.
func (m *mesh) closed(port int, nodes ...int) {
	m.Helper()
	var urls []string
	for _, i := range nodes {
		for _, ip := range m.addresses(i) {
			urls = append(urls, fmt.Sprintf("http://%s:%d/", host(ip), port))
		}
	}
	want := strings.Repeat(denied+"\n", len(urls))
	text := strings.ReplaceAll(tries(urls...), "testbox", harness.Box(m))
	harness.Eventually(m, patient, fmt.Sprintf("port %d of nodes %v is closed", port, nodes), func() error {
		if out := m.fromOutside(text); out != want {
			return fmt.Errorf("the attempts meet\n%s", out)
		}
		return nil
	})
}
