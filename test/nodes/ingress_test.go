//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
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

// TestIngressOfNodes: an Ingress whose only pod is on one node answers at the addresses of all nodes, of both families,
// from outside, from nodes and from pods, also by the address of its Service, behind which are all nodes' proxies; the
// proxies' own ports are open to no client outside. NetworkPolicies that admit ingress-nginx admit them. The address of
// a node that dies is taken out.
func TestIngressOfNodes(t *testing.T) {
	t.Parallel() // it mostly waits
	m := newMesh(t, 2, "vxlan", "eth0")
	m.workload()
	s := m.nodes[0]
	s.Insists("label", "pod", "box-1", "tier=site")
	s.InsistsOn(onePodIngress)
	m.has("ingress/site", 0, 1)

	var visits []visit
	var urls []string
	for i := range m.nodes {
		for _, ip := range m.addresses(i) {
			urls = append(urls, fmt.Sprintf("http://%s/", host(ip)))
			visits = append(visits, visit{urls[len(urls)-1], "box-1"})
		}
	}
	harness.Eventually(t, patient, "the proxies of all nodes know the pod", func() error { // until then they answer with an error
		out := m.fromOutside(strings.ReplaceAll(tries(urls...), "testbox", harness.Box(m)))
		if out != strings.Repeat(open+"\n", len(urls)) {
			return fmt.Errorf("the attempts at %v meet\n%s", urls, out)
		}
		return nil
	})
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
	m.policiesOfIngress()
	m.nodes[1].PowerOff()
	m.has("ingress/site", 0)
}

const closedSite = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: site}
spec: {podSelector: {matchLabels: {tier: site}}, policyTypes: [Ingress]}
`

// openToNginx is what users of ingress-nginx have.
const openToNginx = closedSite + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ingress-nginx}
spec:
  podSelector: {matchLabels: {tier: site}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}, podSelector: {matchLabels: {app.kubernetes.io/component: controller}}}]
    ports: [{port: 8080}]
`

// policiesOfIngress: the proxies of both nodes reach the pod of node 1 as its policies say, from addresses of their
// own; other programs of nodes reach it as before.
func (m *mesh) policiesOfIngress() {
	m.Helper()
	s := m.nodes[0]
	var urls []string
	for i := range m.nodes {
		for _, ip := range m.addresses(i) {
			urls = append(urls, "http://"+host(ip)+"/peer")
		}
	}
	const ask = `for u in %s; do curl -s --max-time 20 -w ' %%{http_code}\n' $u | tr -d '\n'; echo; done`
	meet := func(what string, each func(i int, answer string) bool) {
		harness.Eventually(m, patient, what, func() error {
			out := m.fromOutside(fmt.Sprintf(ask, strings.Join(urls, " ")))
			answers := strings.Split(strings.TrimSpace(out), "\n")
			if len(answers) != len(urls) {
				return fmt.Errorf("%d answers to %d questions:\n%s", len(answers), len(urls), out)
			}
			for i, a := range answers {
				if !each(i, a) {
					return fmt.Errorf("%s answers %q", urls[i], a)
				}
			}
			return nil
		})
	}
	s.InsistsOn(closedSite)
	meet("a pod that admits no peer is reached from no node", func(_ int, answer string) bool { return strings.HasSuffix(answer, " 502") })
	s.InsistsOn(openToNginx)
	var sources []netip.Addr // of both families, node by node
	for i := range m.nodes {
		for _, text := range strings.Fields(s.Insists("get", "node", m.nodes[i].NodeName(), "-o", "jsonpath={.spec.podCIDRs[*]}")) {
			sources = append(sources, clusterconfig.IngressSource(netip.MustParsePrefix(text)))
		}
	}
	meet("a pod that admits ingress-nginx is reached from all nodes", func(i int, answer string) bool {
		from, status, _ := strings.Cut(answer, " ")
		peer, err := netip.ParseAddrPort(from)
		node := i / len(m.addresses(0))
		return err == nil && status == "200" && slices.Contains(sources[2*node:2*node+2], peer.Addr())
	})
	for _, ip := range strings.Fields(s.Insists("get", "pod", "box-1", "-o", "jsonpath={.status.podIPs[*].ip}")) {
		for i, want := range []string{denied, open} {
			try := strings.ReplaceAll(tries(fmt.Sprintf("http://%s:8080/", host(ip))), "testbox", harness.Box(m))
			harness.Eventually(m, patient, fmt.Sprintf("a program of node %d meets the pod %s of node 1: %s", i, ip, want), func() error {
				if got := m.run(i, "sh", "-c", try); got != want { // an attempt is given up after three seconds
					return fmt.Errorf("it meets %q", got)
				}
				return nil
			})
		}
	}
	s.Insists("delete", "--ignore-not-found", "networkpolicy", "site", "ingress-nginx")
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
