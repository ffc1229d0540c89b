//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/coracle-k8s/coracle/test/harness"
)

var described = `
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: default, annotations: {long: "` + long + `"}}
data: {greeting: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: talker, namespace: default, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
  volumes: [{name: texts, configMap: {name: words}}]
  containers:
  - name: box
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command: [sleep, "100000"]
    env: [{name: GREETING, valueFrom: {configMapKeyRef: {name: words, key: greeting}}}]
    volumeMounts: [{name: texts, mountPath: /texts}]
    readinessProbe: {exec: {command: [test, -f, /texts/greeting]}, periodSeconds: 3}
---
` + harness.Workload("Deployment", "default/idle", "replicas: 0", `
  containers: [{name: box, image: `+harness.BoxImage+`, envFrom: [{configMapRef: {name: words}}]}]`) + `
apiVersion: v1
kind: Service
metadata: {name: right, namespace: default}
spec: {selector: {app: talker}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: wrong, namespace: default}
spec: {selector: {app: walker}, ports: [{port: 80}]}
`

// long is an annotation of more than 200 characters.
const long = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789" +
	"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"

// TestPagesOfObjectsSayWhatDescribeSays: a pod's page has what kubectl describe has, with links; a ConfigMap's page
// names templates that use it; a Service's page says whether anything answers.
func TestPagesOfObjectsSayWhatDescribeSays(t *testing.T) {
	k := newServer(t)
	k.Apply(described)
	k.Await(harness.Soon, "pod/talker", `{.status.conditions[?(@.type=="Ready")].status}`, "True")
	p := newBrowser(t, k.Machine.Site).admin(k)

	p.open("object/pods.v1/default/talker")
	p.shows("Environment", "greeting of ConfigMap words", "texts: ConfigMap words", "Readiness", "runs test -f /texts/greeting, each 3 s",
		"gpu:NoSchedule", "sleep 100000", "ago)")
	p.shot("page-pod")
	p.do("following a link", chromedp.Click(`.containers a`))
	p.shows("configmap", "What uses it", "230 characters")
	p.do("finding what uses it", chromedp.Click(`.related button`))
	p.shows("deployment idle", "envFrom of box", "pod talker", "volume texts, GREETING of box")
	p.shot("page-used")

	p.open("object/services.v1/default/right")
	p.shows("1 endpoint is ready.")
	p.open("object/services.v1/default/wrong")
	p.shows("Nothing is behind this Service: no running pod has app=walker.")
	p.saysNothing("metrics.k8s.io") // of a pod that has just begun
}
