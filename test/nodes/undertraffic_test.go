//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"strings"

	"github.com/coracle-k8s/coracle/test/harness"
)

// What happens to a mesh while its pods and hosts send requests without a pause.

// rolledService is a Deployment of pods that come and go as they should: asked whether they are ready, and given a few seconds before they are told to end, which they
// do when their requests are answered. All of them are replaced at once.
const rolledService = `
{apiVersion: apps/v1, kind: Deployment, metadata: {name: rolled}, spec: {replicas: 3, strategy: {rollingUpdate: {maxSurge: "100%", maxUnavailable: 0}},
  selector: {matchLabels: {app: rolled}}, template: {metadata: {labels: {app: rolled}}, spec: {
    topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: rolled}}}],
    containers: [` + harness.BoxYAML + `, command: [testbox, serve],
      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}, lifecycle: {preStop: {sleep: {seconds: 10}}}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: rolled}, spec: {type: NodePort, selector: {app: rolled}, ports: [{port: 80, targetPort: 8080, nodePort: 30088}]}}
`

// rolls: no request fails while a Deployment is rolled, twice, by whatever way it comes: from pods and hosts of each node, to the Service's address and to node ports.
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
