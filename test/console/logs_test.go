//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// stuck are pods that do not start, each for another reason.
const stuck = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hungry, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: hungry}}
  template:
    metadata: {labels: {app: hungry}}
    spec:
      containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, resources: {requests: {memory: 500Gi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: nomap, namespace: default}
spec:
  containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, volumeMounts: [{name: config, mountPath: /config}]}]
  volumes: [{name: config, configMap: {name: missing}}]
---
apiVersion: v1
kind: Pod
metadata: {name: noimage, namespace: default}
spec:
  containers: [{name: box, image: none.example/none, imagePullPolicy: Never}]
`

// TestLogsByKeys reads logs by keys: of pods that have not started, and of those that write much.
func TestLogsByKeys(t *testing.T) {
	k := newServer(t)
	k.Apply(stuck)
	k.Await(harness.Soon, "pod/noimage", "{.status.containerStatuses[0].state.waiting.reason}", "ErrImageNeverPull")
	k.Await(harness.Soon, "deployment/hungry", "{.status.unavailableReplicas}", "2")
	p := newBrowser(t, k.Machine.Site).admin(k)
	// sub opens a list with a filter, and runs a part of the test.
	sub := func(name, list, only string, f func(p *page)) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			p.T = t
			p.list(list)
			p.only(only)
			f(p)
			p.back()
		})
		p.T = t
	}

	unscheduled := "not scheduled: 1 Insufficient memory"
	sub("a pod without a node", "po default", "hungry", func(p *page) {
		p.keys("l")
		p.shows(unscheduled)
		p.without("204 No Content", "No lines yet.")
		p.shot("log-not-scheduled")
		p.back()
		p.only("hungry")
		p.keys("s")
		p.shows("The pod does not run: Pending: " + unscheduled)
		p.without("unable to upgrade")
		p.back()
		p.only("hungry")
		p.keys("A")
		p.shows("The pod does not run: Pending: " + unscheduled)
	})
	sub("a Deployment without a node", "deploy default", "hungry", func(p *page) {
		p.keys("l")
		p.shows("2 pods: " + unscheduled)
		p.without("204 No Content", "No lines yet.")
	})
	sub("a pod without its ConfigMap", "po default", "nomap", func(p *page) {
		p.keys("l")
		p.shows(`container creating: configmap "missing" not found`)
		p.back()
		p.only("nomap")
		p.keys("s")
		p.shows(`The pod does not run: Pending: container creating: configmap "missing" not found`)
	})
	sub("a pod without its image", "po default", "noimage", func(p *page) {
		p.keys("l")
		p.shows(`waiting: ErrImageNeverPull: Container image "none.example/none"`)
	})
	p.saysNothing()
}
