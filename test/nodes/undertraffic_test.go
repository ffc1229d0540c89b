//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// What happens to a mesh while its pods and hosts send requests without a pause.

// rolledService is a Deployment of pods that come and go as they should: asked whether they are ready, and given a few
// seconds before they are terminated, which they do when their requests are answered. All of them are replaced at
// once.
const rolledService = `
{apiVersion: apps/v1, kind: Deployment, metadata: {name: rolled}, spec: {replicas: 3, strategy: {rollingUpdate: {maxSurge: "100%", maxUnavailable: 0}},
  selector: {matchLabels: {app: rolled}}, template: {metadata: {labels: {app: rolled}}, spec: {
    topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: rolled}}}],
    containers: [` + harness.BoxYAML + `, command: [testbox, serve],
      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}, lifecycle: {preStop: {sleep: {seconds: 10}}}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: rolled}, spec: {type: NodePort, selector: {app: rolled}, ports: [{port: 80, targetPort: 8080, nodePort: 30088}]}}
`

// TestRollingUpdates: a pod that ends serves for ten seconds more, and within these every node has to know.
func TestRollingUpdates(t *testing.T) {
	harness.ByHand(t)
	m := newMesh(t, 3, "vxlan", "eth0")
	m.workload()
	m.allMeet()
	m.rolls()
}

// rolls: no request fails while a Deployment is rolled, twice, by whatever way it comes: from pods and hosts of each
// node, to the Service's address and to node ports.
func (m *mesh) rolls() {
	m.Helper()
	s := m.nodes[0]
	s.Apply(rolledService)
	rolled := func() {
		m.Helper()
		s.Kubectl("rollout", "status", "deployment/rolled", "--timeout=180s")
		harness.Eventually(m, patient, "the pods of before are gone", func() error {
			out, err := s.TryKubectl("get", "pods", "-l", "app=rolled", "-o", "name")
			if n := len(strings.Fields(out)); err == nil && n != 3 {
				err = fmt.Errorf("there are %d", n)
			}
			return err
		})
	}
	rolled()
	url := "http://" + s.Kubectl("get", "service", "rolled", "-o", "jsonpath={.spec.clusterIP}") + "/"
	x := &traffic{TB: m.T}
	for i := range m.nodes {
		served(m.T, m.nodes[i], url)
	}
	for i, n := range m.nodes {
		x.fromPod(s, n, fmt.Sprintf("box-%d", i), m.pods[i][0], "20s", url, "keep+"+url)
		x.fromHost(n, "20s", url, fmt.Sprintf("http://%s:30088/", m.nodes[(i+1)%len(m.nodes)].IP))
	}
	x.goesOn("before the first update", 20)
	for _, round := range []string{"1", "2"} {
		s.Kubectl("set", "env", "deployment/rolled", "ROUND="+round)
		rolled()
		x.goesOn("after update "+round, 20)
	}
	x.end("two rolling updates", "")
	s.Kubectl("delete", "deployment/rolled", "service/rolled", "--wait=false")
}

// restarts: coracle starts again on two nodes at once, one of them the server's. No connection ends, none is refused,
// and the rules are what they were.
func (m *mesh) restarts() {
	m.Helper()
	again := []int{0, 1}
	var before [][]string
	for _, i := range again {
		before = append(before, m.rules(i))
	}
	x := m.crossing("1m") // no machine is so busy that a request takes as long
	for _, i := range again {
		testenv.NoError(m, m.nodes[i].Stop())
	}
	x.goesOn("while coracle does not run", 20)
	for _, i := range again {
		m.nodes[i].Start()
	}
	m.nodes[0].WaitAPI()
	for i := range m.nodes { // the others have lost the server for a while
		m.returned(i)
	}
	for _, i := range again {
		harness.Eventually(m, patient, "the line that tells of the first sync", func() error {
			if n := m.nodes[i].InLog("Services are served"); n < 2 {
				return fmt.Errorf("it is there %d times", n)
			}
			return nil
		})
	}
	x.end("coracle starts again on two nodes", "")
	for k, i := range again {
		harness.Eventually(m, patient, fmt.Sprintf("the rules of node %d are those of before", i), func() error { return sameLines(before[k], m.rules(i)) })
	}
}

// rules are what the pod network and the Service proxy have in the kernel: the lines that nft prints, and of sets each
// element, in the order of the alphabet.
func (m *mesh) rules(i int) (lines []string) {
	m.Helper()
	for _, table := range []string{"inet coracle", "ip kube-proxy", "ip6 kube-proxy"} {
		out := m.nft(i, append([]string{"--stateless", "list", "table"}, strings.Fields(table)...)...)
		for _, line := range strings.FieldsFunc(out, func(r rune) bool { return r == '\n' || r == ',' }) {
			line = strings.TrimPrefix(strings.TrimSpace(line), "elements = {")
			lines = append(lines, table+": "+strings.TrimSpace(strings.TrimSuffix(line, "}")))
		}
	}
	slices.Sort(lines)
	return lines
}

// sameLines compares lists in the order of the alphabet.
func sameLines(want, got []string) error {
	var diff []string
	for _, d := range []struct {
		sign    string
		of, not []string
	}{{"-", want, got}, {"+", got, want}} {
		for _, line := range d.of {
			if _, ok := slices.BinarySearch(d.not, line); !ok {
				diff = append(diff, d.sign+" "+line)
			}
		}
	}
	if len(diff) > 0 || len(want) != len(got) {
		return fmt.Errorf("%d lines, there were %d:\n%s", len(got), len(want), strings.Join(diff, "\n"))
	}
	return nil
}

// unplugged: a node's interface goes down for three seconds, which has the kernel drop IPv6 addresses and all routes,
// and comes back with what a network manager gives it. All pods reach all again, and what was connected is connected
// still.
func (m *mesh) unplugged(i int) {
	m.Helper()
	x := m.crossing("1s")
	const script = `ip link set "$1" down
sleep 3
ip link set "$1" up
ip addr replace "$2/64" dev "$1" nodad
[ "$1" != eth0 ] || ip route replace default via 10.77.0.1`
	m.run(i, "sh", "-ec", script, "unplugged", m.device, m.address6(i))
	x.end(fmt.Sprintf("%s of node %d down for 3 s", m.device, i), "tcp:")
	m.returned(i) // the server has lost it for a while
}

// readdressed: a node's second interface gets other addresses. Other nodes get them from the API, and reach its
// pods there; what was connected is connected still.
func (m *mesh) readdressed(i int) {
	m.Helper()
	x := m.crossing("1s")
	const script = `ip addr flush dev "$1" scope global
ip addr add "10.88.0.$2/24" dev "$1"
ip addr add "fd88::$2/64" dev "$1" nodad`
	m.run(i, "sh", "-ec", script, "readdressed", second, fmt.Sprint(100+i))
	for j := range m.nodes {
		harness.Eventually(m, patient, fmt.Sprintf("node %d goes by the new addresses", j), func() error {
			routes := m.run(j, "sh", "-c", "ip route show proto 122; ip -6 route show proto 122")
			for _, network := range []string{"10.88.0.", "fd88::"} {
				if !strings.Contains(routes, fmt.Sprintf(" via %s%d ", network, 100+i)) && i != j {
					return fmt.Errorf("its routes are\n%s", routes)
				}
			}
			return nil
		})
	}
	x.end(fmt.Sprintf("%s of node %d has other addresses", second, i), "tcp:")
}

// resizes: the underlay takes larger packets, and smaller ones again, while packets as large as pods' devices take are
// on their way. Large packets pass again, and what was connected is connected still. It comes last of its kind: what a
// pod has learnt of a smaller way it keeps for ten minutes, as any machine does.
func (m *mesh) resizes() {
	m.Helper()
	x := m.crossing("20s")
	m.largePackets(1400, 1350, 1350)
	x.goesOn("with larger packets", 20)
	const underlay, pods = 1280, 1280
	for i := range m.nodes {
		m.run(i, "ip", "link", "set", m.device, "mtu", fmt.Sprint(underlay))
	}
	for i := range m.nodes {
		harness.Eventually(m, patient, "pods' devices follow", func() error {
			for line := range strings.Lines(m.run(i, "ip", "-o", "link", "show")) {
				if strings.Contains(line, ": vethcor") && !strings.Contains(line, fmt.Sprintf(" mtu %d ", pods)) {
					return fmt.Errorf("one of node %d has not: %s", i, line)
				}
			}
			return nil
		})
	}
	x.end("an underlay of other sizes on all nodes", "tcp:")
}
