//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// Ports of nodes at which their proxies listen.
const proxyPort = 10054

const onePodIngress = `
apiVersion: v1
kind: Service
metadata: {name: site}
spec: {ipFamilyPolicy: RequireDualStack, selector: {tier: site}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: site}
spec: {defaultBackend: {service: {name: site, port: {number: 80}}}}
`

// TestIngressOfNodes: an Ingress whose only pod is on one node answers at the addresses of all nodes, of both families, from outside, from nodes and from pods, also by the address of its
// Service, behind which are all nodes' proxies; the proxies' own ports are open to nobody outside. The address of a node that dies is taken out.
func TestIngressOfNodes(t *testing.T) {
	t.Parallel() // it mostly waits
	m := newMesh(t, 2, "vxlan", "eth0")
	m.workload()
	s := m.nodes[0]
	s.Insists("label", "pod", "box-1", "tier=site")
	s.InsistsOn(onePodIngress)
	m.has("ingress/site", 0, 1)

	var visits []visit
	for i := range m.nodes {
		for _, ip := range m.addresses(i) {
			visits = append(visits, visit{fmt.Sprintf("http://%s/", host(ip)), "box-1"})
		}
	}
	m.judge("outside", m.fromOutside(script(harness.Box(m), visits)), visits)
	for _, ip := range strings.Fields(s.Insists("-n", "kube-system", "get", "service", "ingress", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		visits = append(visits, slices.Repeat([]visit{{fmt.Sprintf("http://%s/", host(ip)), "box-1"}}, 6)...)
	}
	for i := range m.nodes {
		m.judge(fmt.Sprintf("pod %d", i), m.exec(i, script("testbox", visits)), visits)
		m.judge(fmt.Sprintf("host %d", i), m.run(i, "sh", "-c", script(harness.Box(m), visits)), visits)
	}
	for i := range m.nodes {
		for _, ip := range m.addresses(i) {
			if out := m.fromOutside(strings.ReplaceAll(tries(fmt.Sprintf("http://%s:%d/", host(ip), proxyPort)), "testbox", harness.Box(m))); strings.TrimSpace(out) == open {
				t.Errorf("the proxy's port answers from outside at %s", ip)
			}
		}
	}
	m.nodes[1].PowerOff()
	m.has("ingress/site", 0)
}

// has waits until an object's addresses are those of these nodes, of both families.
func (m *mesh) has(object string, nodes ...int) {
	m.Helper()
	var want []string
	for _, i := range nodes {
		want = append(want, m.addresses(i)...)
	}
	slices.Sort(want)
	harness.Eventually(m, patient, fmt.Sprintf("%s has the addresses of nodes %v", object, nodes), func() error {
		out, err := m.nodes[0].TryKubectl("get", object, "-o", "jsonpath="+ingressPath)
		got := slices.Sorted(slices.Values(strings.Fields(out)))
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it has %v, want %v", got, want)
		}
		return err
	})
}
